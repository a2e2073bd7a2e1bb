"""Files that a job's command names are uploaded and count in the job's digest, or are refused."""

from pathlib import Path

import pytest

from cluster import upload
from pft_core.errors import UserError


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a user of the installed package, from which files are uploaded."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(upload, "is_checkout", lambda: False)
    return folder


def package(folder: Path, name: str = "okpkg") -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("")
    (folder / name / "helper.py").write_text("VALUE = 1\n")
    (folder / name / "mod.py").write_text("")
    return folder / name


def uploaded(command: list[str]) -> set[str]:
    with upload.runtime_env(command) as env:
        folder = Path(env["working_dir"])
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if name.split("/")[0] not in upload.PACKAGES}


WAYS = [
    ["prepare", "--plugin", "okpkg.mod"],
    ["train", "quickstart", 'plugins=["okpkg.mod"]'],
    ["train", "mine.yaml"],
]


@pytest.mark.parametrize("command", WAYS, ids=["option", "override", "recipe"])
def test_a_module_in_the_upload_folder_is_uploaded_and_its_package_counts(
    user_folder: Path, command: list[str]
) -> None:
    okpkg = package(user_folder)
    (user_folder / "mine.yaml").write_text("plugins: [okpkg.mod]\n")
    assert upload.plugin_in_upload("okpkg.mod") == "okpkg.mod"
    assert upload.in_upload("mine.yaml") == "mine.yaml"
    assert {f"okpkg/{name}.py" for name in ("__init__", "helper", "mod")} <= uploaded(command)
    before = upload.digest(command)
    (okpkg / "helper.py").write_text("VALUE = 2\n")
    assert upload.digest(command) != before


def test_a_single_file_module_is_uploaded_and_counts(user_folder: Path) -> None:
    command = ["prepare", "--plugin", "single"]
    (user_folder / "single.py").write_text("VALUE = 1\n")
    before = upload.digest(command)
    assert uploaded(command) == {"single.py"}
    (user_folder / "single.py").write_text("VALUE = 2\n")
    assert upload.digest(command) != before


def test_plugin_files_of_an_override_are_uploaded_and_count(user_folder: Path) -> None:
    (user_folder / "own.py").write_text("VALUE = 1\n")
    (user_folder / "b.py").write_text("")
    command = ["train", "quickstart", 'plugins=["own.py", "b.py", "missing.py"]']
    before = upload.digest(command)
    assert uploaded(command) == {"own.py", "b.py"}
    (user_folder / "own.py").write_text("VALUE = 2\n")
    assert upload.digest(command) != before


@pytest.mark.parametrize("place", ["site-packages", "current folder"])
def test_a_module_outside_the_upload_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    folder = tmp_path / "outside"
    package(folder, "outsidepkg")
    if place == "site-packages":
        monkeypatch.syspath_prepend(folder)
    else:
        monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"plugin outsidepkg\.mod: .*__init__\.py is not inside .*: copy it there, or"):
        upload.plugin_in_upload("outsidepkg.mod")
    monkeypatch.setattr(upload, "root", lambda: tmp_path)
    (tmp_path / "mine.yaml").write_text("plugins: [outsidepkg.mod]\n")
    with pytest.raises(UserError, match=r"plugin outsidepkg\.mod"):
        upload.in_upload(str(tmp_path / "mine.yaml"))


def test_an_installed_module_is_refused_without_importing_it() -> None:
    with pytest.raises(UserError, match=r"plugin antigravity: .*give a file that imports it"):
        upload.plugin_in_upload("antigravity")


def test_a_missing_plugin_is_left_to_the_job_to_report(user_folder: Path) -> None:
    for name in ("no_such_package.module", "missing.py", ".relative", "", "pft_core.data"):
        assert upload.plugin_in_upload(name) == name


def test_a_module_in_an_excluded_folder_is_refused(user_folder: Path) -> None:
    package(user_folder, "build")
    with pytest.raises(UserError, match="the folder build is not uploaded"):
        upload.plugin_in_upload("build.mod")


def test_a_manifest_counts_even_if_its_path_contains_an_equals_sign(user_folder: Path) -> None:
    data = user_folder / "a=b"
    data.mkdir()
    for command in (["train", "quickstart", f"data={data}"], ["evaluate", "--data", str(data)]):
        (data / "manifest.json").write_text("1")
        before = upload.digest(command)
        (data / "manifest.json").write_text("2")
        assert upload.digest(command) != before


def test_a_checkout_is_uploaded_as_it_is() -> None:
    with upload.runtime_env(["train", "quickstart"]) as env:
        assert env["working_dir"] == str(upload.CODE)
    assert upload.CODE.is_dir()
