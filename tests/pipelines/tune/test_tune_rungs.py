"""Reports of a trial to the scheduler."""

import pytest

from pipelines.tune.rungs import RungReporter, side_loss, worse_loss


def test_a_rung_is_a_validation_before_the_end() -> None:
    rungs = RungReporter(every=5)
    rows = [{"step": step, "val_loss": 1.0, "val_loss_first": 0.5, "val_loss_second": 0.75} for step in (5, 10, 15, 20)]
    assert [rungs.is_rung(row) for row in rows] == [True, True, True, False]
    assert not rungs.is_rung({"step": 5, "loss": 1.0})
    assert rungs.rung_report(rows[1]) == {"rung": 2, "rung_loss": 0.75}


@pytest.mark.parametrize(
    ("row", "loss"),
    [
        ({"val_loss": 1.0, "val_loss_first": 0.2, "val_loss_second": 0.9}, 0.9),
        ({"val_loss": 0.3}, 0.3),
        # k_way: the mean over axes of each side, (1 + 3) / 2 and (1 + 2) / 2.
        (
            {
                "val_loss": 9.0,
                "val_A/loss_first": 1,
                "val_B/loss_first": 3,
                "val_A/loss_second": 1,
                "val_B/loss_second": 2,
            },
            2,
        ),
    ],
)
def test_the_loss_of_a_rung_is_that_of_the_worse_side(row, loss) -> None:
    assert worse_loss(row) == loss


def test_a_side_without_terms_has_no_loss() -> None:
    assert side_loss({"val_loss": 1.0, "loss_first": 2.0}, "first") is None
