"""Series: reading, scaling, naive forecasts by hand."""

from pathlib import Path

import numpy as np
import pytest

from mapformers.core.errors import MapformersError
from mapformers.tasks.series import borders_of, naive_errors, read_series, scaled, seasonal

HEADER = "date,a,b\n"


def write(path: Path, rows: list[str], header: str = HEADER) -> Path:
    path.write_text(header + "".join(row + "\n" for row in rows))
    return path


def hours(count: int) -> list[str]:
    return [f"2020-01-{1 + i // 24:02} {i % 24:02}:00:00,{i},{i * i}" for i in range(count)]


def test_a_file_is_read(tmp_path: Path) -> None:
    series = read_series(write(tmp_path / "x.csv", hours(30)))
    assert series.names == ("a", "b")
    assert series.values[3].tolist() == [3.0, 9.0]
    assert series.steps_of_a_day() == 24
    features = series.features()
    assert features.shape == (30, 4)
    assert features.min() >= -0.5
    assert features.max() <= 0.5
    assert features[23, 0] == pytest.approx(0.5)
    assert features[0, 1] == pytest.approx(2 / 6 - 0.5)  # a Wednesday
    assert read_series(tmp_path / "x.csv", "b").values.shape == (30, 1)


@pytest.mark.parametrize(
    ("rows", "header", "rule"),
    [
        (["2020-01-01,1"], HEADER, "line 2 must have 3 cells, got 2"),
        (["yesterday,1,2"], HEADER, "line 2 must begin with a date"),
        (["2020-01-01,1,nan"], HEADER, "line 2 must have a finite number in column b, got 'nan'"),
        (["2020-01-01,x,2"], HEADER, "line 2 must have a finite number in column a, got 'x'"),
        (["2020-01-01,1,2", "2020-01-02,,2"], HEADER, "line 3 must have a finite number in column a"),
        (["2020-01-01,1,2"], HEADER, "10 steps or more, got 1"),
        ([], "date\n", "line 1 must name a column"),
        ([], "", "line 1 must name a column"),
        (['2020-01-01,"1,2'], HEADER, "readable CSV"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, rows: list[str], header: str, rule: str) -> None:
    path = write(tmp_path / "x.csv", rows, header)
    with pytest.raises(MapformersError, match=rule) as caught:
        read_series(path)
    assert "x.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_bad_input(tmp_path: Path) -> None:
    with pytest.raises(MapformersError, match="must be a CSV file, got none"):
        read_series(tmp_path / "none.csv")
    with pytest.raises(MapformersError, match="nearest: "):
        read_series(write(tmp_path / "x.csv", hours(30)), "c")
    (tmp_path / "y.csv").write_bytes(b"date,a\n\xff\xfe")
    with pytest.raises(MapformersError, match="readable CSV"):
        read_series(tmp_path / "y.csv")


def test_scaling_knows_the_training_steps_alone() -> None:
    values = np.arange(20.0)[:, None] * np.array([1.0, 0.0])
    z, mean, deviation = scaled(values, 10)
    assert mean.tolist() == [4.5, 0.0]
    assert deviation[1] == 1.0  # a constant stays 0
    assert abs(float(z[:10, 0].mean())) < 1e-6
    assert float(z[:10, 0].std()) == pytest.approx(1.0, abs=1e-6)
    values[15] = 1e6
    assert np.array_equal(scaled(values, 10)[0][:15], z[:15])


def test_naive_forecasts_by_hand() -> None:
    """Values 0 .. 9, a day of 2 steps, windows of 3 from 5: targets (5,6,7), (6,7,8), (7,8,9)."""
    values = np.arange(10.0)[:, None]
    errors = naive_errors(values, 5, 10, 3, 2)
    assert errors["repeat the last value"] == {
        "mse": pytest.approx((1 + 4 + 9) / 3),
        "mae": pytest.approx(2.0),
    }
    # Of the first window the last day is (3, 4), repeated (3, 4, 3): errors 2, 2, 4.
    assert errors["repeat the last day"]["mae"] == pytest.approx(8 / 3)
    assert errors["mean of train"]["mae"] == pytest.approx((5 + 6 + 7 + 6 + 7 + 8 + 7 + 8 + 9) / 9)


def test_borders() -> None:
    assert borders_of(100, None, 10, 5) == (60, 80, 100)
    assert borders_of(100, [50, 20, 10], 10, 5) == (50, 70, 80)
    for given, rule in (([90, 20, 20], "at most the 100 steps"), ([12, 50, 20], "train must hold")):
        with pytest.raises(MapformersError, match=rule):
            borders_of(100, given, 10, 5)


def test_the_generated_series_repeats_its_days() -> None:
    series = seasonal(2000, 2, seed=0)
    assert np.array_equal(series.values, seasonal(2000, 2, seed=0).values)
    day = np.corrcoef(series.values[:-24, 0], series.values[24:, 0])[0, 1]
    assert day > 0.7
    assert day > np.corrcoef(series.values[:-12, 0], series.values[12:, 0])[0, 1]
