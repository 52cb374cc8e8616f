"""``--config FILE.yaml`` for commands with many options, and the options that a result was made by.

A file holds options by their names without dashes in front, and arguments by theirs::

    data: mias
    models: hmc_net,resnet50
    learning-rate: 3e-4
    native: true

What the command line says goes before it. Paths are relative to where the command runs, as on the
command line. Each result has such a file beside it, which makes it again.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from reprlib import repr as short
from typing import Annotated, Any, NoReturn

import typer
import yaml

from hmc_fast.cli.panels import with_panel
from hmc_fast.errors import UserError

OPTIONS_FILE = "options.yaml"
MARK = b"# hmc-fast "
"""What a file of kept options begins with."""
LONGEST_MARK = 200
LONGEST_FILE = 2**20
"""Characters; a file of all options has a few thousand."""
NOT_KEPT = ("config", "help")
"""Parameters that are no part of what a result was made by."""


@dataclass(frozen=True)
class Effective:
    """The options that a command runs with, given or by default; None is left out.

    They stand with every result. A command says where it writes before it does; the options are
    written with the first file. They tell its files from those of others, which it refuses to
    replace.
    """

    command: str
    values: Mapping[str, Any]

    def keep_in(self, folder: Path, *names: str, options_file: str = OPTIONS_FILE) -> None:
        """The command writes into ``folder``, and of ``names`` those that nobody else looks after.

        They may be patterns. Hidden files are left out: the first to be written, whose command was
        killed before it had its name, is one.

        Raises :class:`UserError` where one of them, or the file of options, is of others.
        """
        mark = folder / options_file
        check_place(mark)
        if not any(map(self._is_of_group, folder.glob(f"*{OPTIONS_FILE}"))):
            found = [path for name in names for path in folder.glob(name)]
            for path in (path for path in found if not path.name.startswith(".")):
                _refuse(path)
        self._mark(folder, mark)

    def keep_beside(self, result: Path, *, ours: bool = False) -> None:
        """The command writes ``result``, a file or a whole folder.

        ``ours`` says that what is there has been looked at, and may be replaced.

        Raises :class:`UserError` where it, or the file of options, is of others.
        """
        mark = beside(result)
        check_place(mark)
        if result.exists() and not ours and not self._is_of_group(mark):
            _refuse(result)
        self._mark(result, mark)

    def write(self, path: Path) -> None:
        """Write the options now; raises :class:`UserError` where ``path`` is of others."""
        from hmc_fast.files import write_text

        check_place(path)
        write_text(path, self._text(path))

    def _mark(self, output: Path, mark: Path) -> None:
        from hmc_fast.files import mark_output

        mark_output(output, mark, self._text(mark))

    def _text(self, path: Path) -> str:
        dumped = yaml.safe_dump(dict(self.values), sort_keys=False, allow_unicode=True)
        return f"# {self.command} --config {path.name}\n{dumped}"

    def _is_of_group(self, mark: Path) -> bool:
        """Whether this command, or another of its group, has made the file of options."""
        return mark.is_file() and _first_words(mark) == self.command.split()[:2]


def check_place(path: Path) -> None:
    """Raises :class:`UserError` where ``path`` is a file that is none of options."""
    if path.exists() and not _first_words(path):
        _refuse(path)


def beside(result: Path) -> Path:
    """Where the options of a file stand, or of a folder that is not ours alone."""
    return result.with_name(f"{result.name}.{OPTIONS_FILE}")


def _refuse(path: Path) -> NoReturn:
    raise UserError(
        f"{path}: no command made it, and it is not overwritten; move it, or name another output"
    )


def _first_words(path: Path) -> list[str]:
    """Program and command that made a file of options; empty for any other file."""
    try:
        with path.open("rb") as file:
            line = file.readline(LONGEST_MARK)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return line[1:].decode(errors="replace").split()[:2] if line.startswith(MARK) else []


def takes_config(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--config``, and its options their panels in the help.

    The command takes what it runs with as a parameter ``effective``, in whose place the option
    appears, and keeps it beside its result.
    """
    signature = inspect.signature(command, eval_str=True)
    takes_context = "context" in signature.parameters
    parameters = [] if takes_context else [_parameter("context", typer.Context)]
    for parameter in signature.parameters.values():
        if parameter.name == "effective":
            parameters.append(_parameter("config", with_panel("config", Config), default=None))
        else:
            annotation = with_panel(parameter.name, parameter.annotation)
            parameters.append(
                parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
            )

    @wraps(command)
    def run(*, context: typer.Context, config: Path | None, **values: Any) -> None:
        if config is not None and context.invoked_subcommand is not None:
            raise UserError(
                f"--config {config}: belongs behind {context.invoked_subcommand}, whose options it "
                "holds"
            )
        if takes_context:
            values["context"] = context
        for value in values.values():
            _refuse_pipes(value if isinstance(value, list) else [value])
        if isinstance(values.get("out"), Path):  # before the work, not after it
            for place in (values["out"] / OPTIONS_FILE, beside(values["out"])):
                check_place(place)
        command(effective=_effective(context), **values)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _refuse_pipes(values: Iterable[Any]) -> None:
    """Raises :class:`UserError` for a path that is neither file nor folder, which might not end."""
    for path in values:
        if isinstance(path, Path) and not (path.is_file() or path.is_dir()) and path.exists():
            raise UserError(f"{path}: is a pipe or a device; a file or a folder is needed")


def _parameter(
    name: str, annotation: Any, default: Any = inspect.Parameter.empty
) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _read(context: typer.Context, file: Path | None) -> Path | None:
    """Take the values of ``file`` as the command's defaults."""
    if file is not None:
        context.default_map = _defaults(file, context)
    return file


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="YAML file with options by name; the command line goes before it. Each result has one "
        "beside it.",
        is_eager=True,
        callback=_read,
    ),
]


def _defaults(file: Path, context: typer.Context) -> dict[str, Any]:
    parameters = _by_name(context)
    defaults: dict[str, Any] = {}
    for name, value in _document(file).items():
        parameter = parameters.get(str(name).replace("_", "-"))
        if parameter is None:
            near = get_close_matches(str(name).replace("_", "-"), parameters, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{file}: {context.command_path} has no option {name}{hint}")
        if str(parameter.name) in defaults:
            raise UserError(f"{file}: {name} is given twice, with - and with _")
        if value is not None:
            defaults[str(parameter.name)] = _as_typed(file, name, value, parameter)
    return defaults


def _document(file: Path) -> dict[Any, Any]:
    try:
        with file.open(encoding="utf-8") as stream:
            text = stream.read(LONGEST_FILE)
        if len(text) == LONGEST_FILE:
            raise UserError(f"{file}: is too long for a file of options")
        _check_keys(file, yaml.compose(text, yaml.SafeLoader))
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{file}: is no YAML ({' '.join(str(error).split())})") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise UserError(f"--config {file}: cannot be read ({reason})") from None
    except (ValueError, OverflowError) as error:  # a date or a number that none can be
        raise UserError(f"{file}: is no YAML ({error})") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UserError(f"{file}: needs lines such as 'epochs: 3', an option and its value")
    return document


def _check_keys(file: Path, node: Any) -> None:
    """Raises :class:`UserError` for a key given twice, of which PyYAML would take the last."""
    if isinstance(node, yaml.MappingNode):
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name in (name for name, count in counts.items() if count > 1):
            raise UserError(f"{file}: {name} is given twice")


def _as_typed(file: Path, name: object, value: Any, parameter: Any) -> Any:
    """``value`` as the command line would have it, where the checks of each option wait for it."""
    flag = bool(getattr(parameter, "is_flag", False))
    many = bool(getattr(parameter, "multiple", False)) or parameter.nargs == -1
    listed = value if isinstance(value, list) else [value]
    if flag and not isinstance(value, bool):
        raise UserError(f"{file}: {name} is {short(value)}, needs to be true or false")
    if not flag and any(isinstance(item, bool | dict | list) or item is None for item in listed):
        raise UserError(
            f"{file}: {name} is {short(value)}, needs a plain value; quote a word such as 'off', "
            "which YAML reads as false"
        )
    if isinstance(value, list) and not many:
        raise UserError(f"{file}: {name} is a list, needs one value")
    if flag:
        return value
    texts = [str(item) for item in listed]
    return texts if many else texts[0]


def _by_name(context: typer.Context) -> dict[str, Any]:
    """The command's parameters by all their names, without dashes in front."""
    return {
        word: parameter
        for parameter in context.command.params
        if parameter.name not in NOT_KEPT
        for word in _words(parameter)
    }


def _words(parameter: Any) -> list[str]:
    names = (
        name.lstrip("-") for name in parameter.opts if not name.startswith("-") or len(name) > 2
    )
    return [name.replace("_", "-") for name in names]


def _effective(context: typer.Context) -> Effective:
    values = {}
    for parameter in context.command.params:
        value = context.params.get(str(parameter.name))
        if parameter.name not in NOT_KEPT and value not in (None, [], ()):
            values[_words(parameter)[0]] = _plain(value)
    return Effective(context.command_path, values)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
