"""`drllm completion`: a script that the shell takes, with every command and its flags."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from drllm.cli.main import COMMANDS, main


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_every_command_is_completed(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in COMMANDS)
    assert "--minutes" in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_flags(capsys, tmp_path):
    main(["completion", "bash"])
    (tmp_path / "drllm.sh").write_text(capsys.readouterr().out)
    called = r'$(complete -p drllm | sed "s/.*-F \([^ ]*\).*/\1/")'
    ask = 'source "$0"; COMP_WORDS=(@typed@); COMP_CWORD=@place@; @called@; printf "%s\\n" "${COMPREPLY[@]}"'.replace("@called@", called)
    for words, place, expected in (("drllm ret", 1, "retrofit"), ("drllm retrofit --min", 2, "--minutes")):
        done = subprocess.run(
            ["bash", "-c", ask.replace("@typed@", words).replace("@place@", str(place)), str(tmp_path / "drllm.sh")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert expected in done.stdout.split()


def test_an_unknown_shell_is_one_line(capsys):
    assert main(["completion", "fish"]) == 2
    assert "invalid choice: 'fish'" in capsys.readouterr().err
