//! The table of commands, for help, completion and error messages.

use crate::output;

/// What the words of a command are names of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    None,
    Remote,
    Local,
    /// The first on the host, the others in the guest.
    LocalThenRemote,
    /// The first in the guest, the others on the host.
    RemoteThenLocal,
    /// None, then in the guest.
    ValueThenRemote,
    Commands,
}

/// A command as in the help. An alias has no description of its own.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) usage: &'static str,
    pub(super) summary: &'static str,
    pub(super) names: Names,
}

const fn entry(
    name: &'static str,
    usage: &'static str,
    summary: &'static str,
    names: Names,
) -> Entry {
    Entry {
        name,
        usage,
        summary,
        names,
    }
}

/// Every name a command has, sorted.
pub(super) const COMMANDS: &[Entry] = &[
    entry("?", "", "", Names::Commands),
    entry("bye", "", "leave", Names::None),
    entry(
        "cd",
        "[PATH]",
        "change the guest's directory",
        Names::Remote,
    ),
    entry(
        "chgrp",
        "[-h] GID PATH…",
        "change the group, by number",
        Names::ValueThenRemote,
    ),
    entry(
        "chmod",
        "[-h] MODE PATH…",
        "change the mode, in octal",
        Names::ValueThenRemote,
    ),
    entry(
        "chown",
        "[-h] UID PATH…",
        "change the owner, by number",
        Names::ValueThenRemote,
    ),
    entry("copy", "", "", Names::Remote),
    entry(
        "cp",
        "OLD NEW",
        "copy a file inside the guest",
        Names::Remote,
    ),
    entry(
        "df",
        "[-hi] [PATH]",
        "show the free space of a file system",
        Names::Remote,
    ),
    entry("exit", "", "", Names::None),
    entry(
        "get",
        "[-afpR] REMOTE [LOCAL]",
        "copy out of the guest",
        Names::RemoteThenLocal,
    ),
    entry("help", "", "show this", Names::Commands),
    entry("lcd", "[PATH]", "change the host's directory", Names::Local),
    entry(
        "lls",
        "[OPTION…] [PATH…]",
        "list a directory of the host",
        Names::Local,
    ),
    entry(
        "lmkdir",
        "PATH",
        "create a directory on the host",
        Names::Local,
    ),
    entry("ln", "[-s] OLD NEW", "link in the guest", Names::Remote),
    entry("lpwd", "", "show the host's directory", Names::None),
    entry(
        "ls",
        "[-1afhlnrSt] [PATH…]",
        "list a directory",
        Names::Remote,
    ),
    entry("lumask", "[MASK]", "set the host's umask", Names::None),
    entry("mget", "", "", Names::RemoteThenLocal),
    entry("mkdir", "PATH", "create a directory", Names::Remote),
    entry("mput", "", "", Names::LocalThenRemote),
    entry("progress", "", "show progress, or do not", Names::None),
    entry(
        "put",
        "[-afpR] LOCAL [REMOTE]",
        "copy into the guest",
        Names::LocalThenRemote,
    ),
    entry("pwd", "", "show the guest's directory", Names::None),
    entry("quit", "", "", Names::None),
    entry(
        "reget",
        "[-fpR] REMOTE [LOCAL]",
        "go on with a get",
        Names::RemoteThenLocal,
    ),
    entry("rename", "OLD NEW", "rename", Names::Remote),
    entry(
        "reput",
        "[-fpR] LOCAL [REMOTE]",
        "go on with a put",
        Names::LocalThenRemote,
    ),
    entry("rm", "[-fr] PATH…", "remove files", Names::Remote),
    entry("rmdir", "PATH", "remove an empty directory", Names::Remote),
    entry("stat", "PATH…", "show attributes", Names::Remote),
    entry("symlink", "OLD NEW", "make a symbolic link", Names::Remote),
    entry(
        "version",
        "",
        "show the version of the protocol",
        Names::None,
    ),
];

/// The text of `help`.
pub(super) fn help() -> Vec<String> {
    let mut rows: Vec<Vec<String>> = COMMANDS
        .iter()
        .filter(|entry| !entry.summary.is_empty())
        .map(|entry| {
            vec![
                format!("{} {}", entry.name, entry.usage),
                entry.summary.to_owned(),
            ]
        })
        .collect();
    rows.push(vec![
        "!COMMAND".to_owned(),
        "run a command on the host".to_owned(),
    ]);
    rows.push(vec!["!".to_owned(), "a shell on the host".to_owned()]);
    let mut lines = output::table(&rows);
    lines.push(String::new());
    lines.push("Also: mget, mput (get, put), copy (cp), exit, quit (bye), ? (help).".to_owned());
    lines.push("REMOTE, LOCAL and PATH can have wildcards: * ? [a-z].".to_owned());
    lines.push(
        r"A name with blanks: 'a b' or a\ b. One with bytes that are no text: $'a\xff\n'."
            .to_owned(),
    );
    lines
}

/// How a command is written.
pub(super) fn usage(name: &str) -> String {
    match COMMANDS.iter().find(|entry| entry.name == name) {
        Some(entry) if !entry.usage.is_empty() => format!("{name} {}", entry.usage),
        _ => name.to_owned(),
    }
}
