"""The tables of the pages on theory: what they make of the numbers beside the pictures."""

import pytest
from conftest import ROOT

pytestmark = pytest.mark.once


@pytest.fixture
def theory_tables(monkeypatch):
    """The module, which is no part of the package."""
    monkeypatch.syspath_prepend(ROOT)
    from docs import theory_tables

    return theory_tables


@pytest.fixture
def numbers(theory_tables, tmp_path, monkeypatch):
    """Puts the text of a CSV file in the place of the numbers of a picture."""
    monkeypatch.setattr(theory_tables, "FOLDER", tmp_path)
    return lambda name, *lines: (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")


def _cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_shares_of_paths_add_up_to_the_whole(theory_tables, numbers):
    numbers(
        "path_lengths",
        "network,length,paths,path_norm,total,share",
        "A,0,1,0.00012,0.002,0.1",
        "A,1,3,0.0002,0.006,0.9",
    )
    found = {line[0]: line[1:] for line in _cells(theory_tables.path_lengths())}
    assert found["norm of one path times 10^4, A"] == ["1.2", "2.0"]
    assert found["number times norm, A, %"] == ["25.0", "75.0"]  # 2 and 6 of 8
    assert found["exact share, A, %"] == ["10.0", "90.0"]


def test_costates_grow_from_output_to_input_and_errors_are_those_of_the_first_state(
    theory_tables, numbers
):
    numbers(
        "adjoint",
        "network,stage,quantity,place,particle,time,value",
        *("A,s,costate norm,0,,,8", "A,s,costate norm,1,,,4", "A,s,costate norm,2,,,1"),
        *("A,s,gradient norm,0,0,1,0.5", "A,s,gradient norm,1,1,2,0.25"),
        *(
            f'{network},s,"error of the {what}, {n} iterations",{place},,,{value}'
            for network in ("A", "smooth stage")
            for n, first in ((1, 2.5), (5, 12345))
            for what, place, value in (
                ("state", 0, first),
                ("state", 1, 7),
                ("state", 2, 0),
                ("gradient", "", 0.000031),
            )
        ),
    )
    assert _cells(theory_tables.adjoint())[2:] == [["A", "s", "2", "8.0", "2.0", "0.25 to 0.50"]]
    assert _cells(theory_tables.reconstruction())[2:] == [
        ["A, s", "2", "2.5, 3.1e-5", "1.2e4, 3.1e-5"],
        [theory_tables.SMOOTH, "2", "2.5, 3.1e-5", "1.2e4, 3.1e-5"],
    ]


def test_the_order_of_refinement_is_that_of_the_finest_parts(theory_tables, numbers):
    numbers(
        "limits",
        "picture,series,parts,error,change,order",
        "rate,M = 1,,1,,",
        *('refined,"A, s",1,0.5,0.3,0.4', 'refined,"A, s",2,0.2,0.12,1.04'),
        *('refined,"A, s",4,0.1,0.012,nan', 'refined,"A, s",8,0,nan,nan'),
    )
    assert _cells(theory_tables.refinement())[2:] == [["A, s", "50 %", "1.2 %", "1.0"]]


def test_minima_are_medians_with_the_worst_seed(theory_tables, numbers):
    numbers(
        "minima",
        "panel,problem,network,start,particles,loss",
        *(
            f"particles,images,ResNet,random,{n},{loss}"
            for n in (1, 2)
            for loss in (0.3, 2e-6, 0.1)
        ),
        *(f"particles,sphere,mean-field,random,2,{loss}" for loss in (0.012, 0.4, 0.0042)),
        *(f"starts,sphere,shallow,{start},8,0.25" for start in theory_tables.STARTS),
    )
    # The problem of the theorem comes first; a cell without runs is empty.
    assert _cells(theory_tables.minima())[2:] == [
        ["sphere, mean-field", "", "0.01 (0.40)"],
        ["images, ResNet", "0.10 (0.30)", "0.10 (0.30)"],
    ]
    assert [line[1] for line in _cells(theory_tables.starts())[2:]] == ["0.25"] * 5
