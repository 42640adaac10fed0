"""Words, plans, scopes and cards: the contract. Imports torch only."""
