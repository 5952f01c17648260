//! Parses the words of a line as a command.

use anyhow::{Context, bail};
use vsock_agent_client::protocol::{id, sftp::PERMISSION_BITS};

use super::{
    line::{self, Word},
    table,
};
use crate::{
    args::parse_octal,
    files::{
        listing::{Order, View},
        remove::Removal,
    },
};

/// A parsed command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Bye,
    Help,
    Version,
    Progress,
    Pwd,
    Cd(Option<Word>),
    Ls(View, Vec<Word>),
    Transfer(Transfer),
    Rm(Removal, Vec<Word>),
    Mkdir(Word),
    Rmdir(Word),
    Rename(Word, Word),
    Copy(Word, Word),
    Hardlink(Word, Word),
    Symlink(Word, Word),
    SetAttribute {
        attribute: Attribute,
        /// Changes a symbolic link instead of its target.
        of_link: bool,
        paths: Vec<Word>,
    },
    Df {
        inodes: bool,
        human: bool,
        path: Option<Word>,
    },
    Stat(Vec<Word>),
    Lcd(Option<Word>),
    Lpwd,
    Lmkdir(Word),
    Lumask(Option<u32>),
    /// A line for the user's shell; empty for an interactive shell.
    Shell(Vec<u8>),
}

/// `get` and `put`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) direction: Direction,
    pub(super) recursive: bool,
    pub(super) resume: bool,
    pub(super) sync: bool,
    pub(super) source: Word,
    pub(super) target: Option<Word>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the guest to the host.
    Get,
    /// From the host to the guest.
    Put,
}

/// An attribute to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Attribute {
    Mode(u32),
    Owner(u32),
    Group(u32),
}

/// Parses a line; `None` if it has no command.
pub(super) fn parse(text: &[u8]) -> anyhow::Result<Option<Command>> {
    if let Some(shell) = text.strip_prefix(b"!") {
        return Ok(Some(Command::Shell(shell.trim_ascii().to_vec())));
    }
    if let Some(arguments) = lls(text) {
        let line = [b"ls", arguments.trim_ascii_end()].concat();
        return Ok(Some(Command::Shell(line)));
    }
    let words = line::words(text)?;
    let Some((name, rest)) = words.split_first() else {
        return Ok(None);
    };
    let name = name.to_string().to_lowercase();
    let command = command(&name, rest).with_context(|| table::usage(&name))?;
    Ok(Some(command))
}

/// The arguments of `lls`, which the shell splits.
fn lls(text: &[u8]) -> Option<&[u8]> {
    let (name, arguments) = text.split_at_checked(3)?;
    let is_word = arguments.first().is_none_or(u8::is_ascii_whitespace);
    (name.eq_ignore_ascii_case(b"lls") && is_word).then_some(arguments)
}

fn command(name: &str, words: &[Word]) -> anyhow::Result<Command> {
    Ok(match name {
        "bye" | "exit" | "quit" => none(words, Command::Bye)?,
        "help" | "?" => Command::Help,
        "version" => none(words, Command::Version)?,
        "progress" => none(words, Command::Progress)?,
        "pwd" => none(words, Command::Pwd)?,
        "lpwd" => none(words, Command::Lpwd)?,
        "cd" => Command::Cd(optional(plain(words)?)?),
        "lcd" => Command::Lcd(optional(plain(words)?)?),
        "ls" => {
            let (flags, paths) = options(words, "1afhlnrSt")?;
            Command::Ls(view(&flags), paths.to_vec())
        }
        "get" | "mget" => Command::Transfer(transfer(Direction::Get, words, false)?),
        "put" | "mput" => Command::Transfer(transfer(Direction::Put, words, false)?),
        "reget" => Command::Transfer(transfer(Direction::Get, words, true)?),
        "reput" => Command::Transfer(transfer(Direction::Put, words, true)?),
        "rm" => {
            let (flags, paths) = options(words, "frR")?;
            let removal = Removal {
                recursive: flags.iter().any(|flag| b"rR".contains(flag)),
                force: flags.contains(&b'f'),
            };
            Command::Rm(removal, some(paths)?)
        }
        "mkdir" => Command::Mkdir(one(plain(words)?)?),
        "rmdir" => Command::Rmdir(one(plain(words)?)?),
        "lmkdir" => Command::Lmkdir(one(plain(words)?)?),
        "rename" => two(plain(words)?).map(|(old, new)| Command::Rename(old, new))?,
        "cp" | "copy" => two(plain(words)?).map(|(old, new)| Command::Copy(old, new))?,
        "ln" => {
            let (flags, paths) = options(words, "s")?;
            let (old, new) = two(paths)?;
            if flags.contains(&b's') {
                Command::Symlink(old, new)
            } else {
                Command::Hardlink(old, new)
            }
        }
        "symlink" => two(plain(words)?).map(|(old, new)| Command::Symlink(old, new))?,
        "chmod" => set_attribute(words, |mode| {
            octal(mode, PERMISSION_BITS).map(Attribute::Mode)
        })?,
        "chown" => set_attribute(words, |user| id(user).map(Attribute::Owner))?,
        "chgrp" => set_attribute(words, |group| id(group).map(Attribute::Group))?,
        "df" => {
            let (flags, paths) = options(words, "hi")?;
            Command::Df {
                inodes: flags.contains(&b'i'),
                human: flags.contains(&b'h'),
                path: optional(paths)?,
            }
        }
        "stat" => Command::Stat(some(plain(words)?)?),
        "lumask" => {
            let mask = optional(plain(words)?)?;
            Command::Lumask(mask.map(|mask| octal(&mask, 0o777)).transpose()?)
        }
        _ => bail!("no such command; try help"),
    })
}

/// Splits options from operands, as `getopt(3)` does with `+`: the options end before the first
/// operand or after `--`.
fn options<'a>(words: &'a [Word], known: &str) -> anyhow::Result<(Vec<u8>, &'a [Word])> {
    let mut flags = Vec::new();
    let mut rest = words;
    while let Some((word, after)) = rest.split_first() {
        let bytes = word.bytes();
        match bytes.strip_prefix(b"-") {
            None | Some(b"") => break,
            Some(b"-") => return Ok((flags, after)),
            Some(letters) => {
                let mut letters = letters.iter();
                if letters.any(|letter| !known.as_bytes().contains(letter)) {
                    bail!("{word}: no such option");
                }
                flags.extend_from_slice(&bytes[1..]);
            }
        }
        rest = after;
    }
    Ok((flags, rest))
}

/// The operands of a command without options.
fn plain(words: &[Word]) -> anyhow::Result<&[Word]> {
    options(words, "").map(|(_, rest)| rest)
}

fn none(words: &[Word], command: Command) -> anyhow::Result<Command> {
    match words {
        [] => Ok(command),
        _ => bail!("it takes no arguments"),
    }
}

fn optional(words: &[Word]) -> anyhow::Result<Option<Word>> {
    match words {
        [] => Ok(None),
        words => one(words).map(Some),
    }
}

fn one(words: &[Word]) -> anyhow::Result<Word> {
    match words {
        [word] => not_empty(word),
        [] => bail!("a path is missing"),
        _ => bail!("too many arguments; quote names with spaces"),
    }
}

fn two(words: &[Word]) -> anyhow::Result<(Word, Word)> {
    match words {
        [first, second] => Ok((not_empty(first)?, not_empty(second)?)),
        [] | [_] => bail!("two paths are needed"),
        _ => bail!("too many arguments; quote names with spaces"),
    }
}

fn some(words: &[Word]) -> anyhow::Result<Vec<Word>> {
    match words {
        [] => bail!("a path is missing"),
        words => words.iter().map(not_empty).collect(),
    }
}

fn not_empty(word: &Word) -> anyhow::Result<Word> {
    if word.0.is_empty() {
        bail!("a path is empty")
    }
    Ok(word.clone())
}

fn transfer(direction: Direction, words: &[Word], resume: bool) -> anyhow::Result<Transfer> {
    // -p has no effect: modes and times are always kept.
    let (flags, paths) = options(words, if resume { "fpPrR" } else { "afpPrR" })?;
    let (source, target) = match paths {
        [source] => (not_empty(source)?, None),
        paths => two(paths).map(|(source, target)| (source, Some(target)))?,
    };
    Ok(Transfer {
        direction,
        recursive: flags.iter().any(|flag| b"rR".contains(flag)),
        resume: resume || flags.contains(&b'a'),
        sync: flags.contains(&b'f'),
        source,
        target,
    })
}

fn set_attribute(
    words: &[Word],
    parse: impl FnOnce(&Word) -> anyhow::Result<Attribute>,
) -> anyhow::Result<Command> {
    let (flags, rest) = options(words, "h")?;
    let (value, paths) = rest.split_first().context("a value is missing")?;
    Ok(Command::SetAttribute {
        attribute: parse(value)?,
        of_link: flags.contains(&b'h'),
        paths: some(paths)?,
    })
}

fn octal(word: &Word, max: u32) -> anyhow::Result<u32> {
    parse_octal(&word.to_string(), max)
        .with_context(|| format!("{word}: not an octal number up to {max:o}"))
}

fn id(word: &Word) -> anyhow::Result<u32> {
    id::parse(&word.to_string()).with_context(|| format!("{word}: not a number of a user or group"))
}

/// The view for the options of `ls`.
fn view(flags: &[u8]) -> View {
    let has = |flag: u8| flags.contains(&flag);
    View {
        all: has(b'a'),
        long: has(b'l') || has(b'n'),
        numeric: has(b'n'),
        human: has(b'h'),
        single: has(b'1'),
        reverse: has(b'r'),
        order: match (has(b'f'), has(b't'), has(b'S')) {
            (true, _, _) => Order::None,
            (_, true, _) => Order::Time,
            (_, _, true) => Order::Size,
            _ => Order::Name,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::{super::table::COMMANDS, *};

    fn read(line: &str) -> Command {
        parse(line.as_bytes()).unwrap().unwrap()
    }

    fn word(text: &str) -> Word {
        line::words(text.as_bytes()).unwrap().remove(0)
    }

    fn refused(line: &str) {
        parse(line.as_bytes()).unwrap_err();
    }

    #[test]
    fn every_name_in_the_table_is_a_command_and_the_table_is_sorted() {
        assert!(COMMANDS.is_sorted_by_key(|entry| entry.name));
        for entry in COMMANDS {
            let tries = ["", " a", " a b", " 1 a"].map(|words| format!("{}{words}", entry.name));
            assert!(
                tries.iter().any(|line| parse(line.as_bytes()).is_ok()),
                "{}",
                entry.name
            );
        }
    }

    #[test]
    fn options_end_at_the_first_operand_or_after_two_dashes() {
        let Command::Ls(view, paths) = read("ls -lt -h -- -x") else {
            panic!()
        };
        assert!(view.long && view.human && view.order == Order::Time);
        assert_eq!(paths, [word("-x")]);
        refused("ls -lX");
        let Command::Rm(_, paths) = read("rm -") else {
            panic!()
        };
        assert_eq!(paths, [word("-")]);
    }

    #[test]
    fn get_and_put_parse_their_options_and_operands() {
        let Command::Transfer(transfer) = read("get -rf 'a b' c") else {
            panic!()
        };
        assert!(transfer.recursive && transfer.sync && !transfer.resume);
        assert_eq!(
            (transfer.source, transfer.target),
            (word("'a b'"), Some(word("c")))
        );
        let Command::Transfer(transfer) = read("reput a") else {
            panic!()
        };
        assert!(transfer.resume && transfer.direction == Direction::Put);
        for line in ["get", "put a b c", "get -x a", "reget -a b", "get ''"] {
            refused(line);
        }
    }

    #[test]
    fn chmod_chown_and_lumask_refuse_invalid_numbers() {
        assert_eq!(
            read("chmod -h 4755 a"),
            Command::SetAttribute {
                attribute: Attribute::Mode(0o4755),
                of_link: true,
                paths: vec![word("a")]
            }
        );
        for line in [
            "chmod 8 a",
            "chmod 10000 a",
            "chmod +7 a",
            "chown root a",
            "chown 4294967295 a",
            "chgrp -1 a",
            "chgrp 1",
            "lumask 1000",
        ] {
            refused(line);
        }
    }

    #[test]
    fn a_line_for_the_shell_is_passed_unchanged() {
        assert_eq!(read("! echo  'a"), Command::Shell(b"echo  'a".to_vec()));
        assert_eq!(read("lls -l *.x\r"), Command::Shell(b"ls -l *.x".to_vec()));
        assert_eq!(read("!"), Command::Shell(Vec::new()));
    }

    #[test]
    fn blank_lines_and_comments_have_no_command() {
        assert_eq!(parse(b"").unwrap(), None);
        assert_eq!(parse(b"# ls").unwrap(), None);
        refused("lx");
        refused("pwd x");
    }
}
