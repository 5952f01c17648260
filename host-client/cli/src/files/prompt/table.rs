//! The table of commands for help, completion and error messages.

use crate::output;

/// What the operands of a command name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Names {
    None,
    Remote,
    Local,
    /// The first operand is on the host, the others are in the guest.
    LocalThenRemote,
    /// The first operand is in the guest, the others are on the host.
    RemoteThenLocal,
    /// The first operand is a value, the others are in the guest.
    ValueThenRemote,
    Commands,
}

/// A command of the help. An alias has no summary.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: &'static str,
    usage: &'static str,
    summary: &'static str,
    pub(super) names: Names,
}

#[rustfmt::skip]
const fn entry(name: &'static str, usage: &'static str, summary: &'static str, names: Names) -> Entry {
    Entry { name, usage, summary, names }
}

/// All commands and aliases, sorted.
#[rustfmt::skip]
pub(super) const COMMANDS: &[Entry] = &[
    entry("?", "", "", Names::Commands),
    entry("bye", "", "quit", Names::None),
    entry("cd", "[PATH]", "change the guest's directory", Names::Remote),
    entry("chgrp", "[-h] GID PATH…", "change the group, by number", Names::ValueThenRemote),
    entry("chmod", "[-h] MODE PATH…", "change the mode, in octal", Names::ValueThenRemote),
    entry("chown", "[-h] UID PATH…", "change the owner, by number", Names::ValueThenRemote),
    entry("copy", "", "", Names::Remote),
    entry("cp", "OLD NEW", "copy a file inside the guest", Names::Remote),
    entry("df", "[-hi] [PATH]", "show the free space of a file system", Names::Remote),
    entry("exit", "", "", Names::None),
    entry("get", "[-afpR] REMOTE [LOCAL]", "copy from the guest", Names::RemoteThenLocal),
    entry("help", "", "show this help", Names::Commands),
    entry("lcd", "[PATH]", "change the host's directory", Names::Local),
    entry("lls", "[OPTION…] [PATH…]", "list a directory of the host", Names::Local),
    entry("lmkdir", "PATH", "create a directory on the host", Names::Local),
    entry("ln", "[-s] OLD NEW", "create a link in the guest", Names::Remote),
    entry("lpwd", "", "show the host's directory", Names::None),
    entry("ls", "[-1afhlnrSt] [PATH…]", "list a directory", Names::Remote),
    entry("lumask", "[MASK]", "set the host's umask", Names::None),
    entry("mget", "", "", Names::RemoteThenLocal),
    entry("mkdir", "PATH", "create a directory", Names::Remote),
    entry("mput", "", "", Names::LocalThenRemote),
    entry("progress", "", "toggle the progress meter", Names::None),
    entry("put", "[-afpR] LOCAL [REMOTE]", "copy to the guest", Names::LocalThenRemote),
    entry("pwd", "", "show the guest's directory", Names::None),
    entry("quit", "", "", Names::None),
    entry("reget", "[-fpR] REMOTE [LOCAL]", "resume a get", Names::RemoteThenLocal),
    entry("rename", "OLD NEW", "rename", Names::Remote),
    entry("reput", "[-fpR] LOCAL [REMOTE]", "resume a put", Names::LocalThenRemote),
    entry("rm", "[-fr] PATH…", "remove files", Names::Remote),
    entry("rmdir", "PATH", "remove an empty directory", Names::Remote),
    entry("stat", "PATH…", "show attributes", Names::Remote),
    entry("symlink", "OLD NEW", "create a symbolic link", Names::Remote),
    entry("version", "", "show the version of the protocol", Names::None),
];

/// The lines of `help`.
pub(super) fn help() -> Vec<String> {
    let row = |name: String, summary: &str| vec![name, summary.to_owned()];
    let mut rows = Vec::new();
    for entry in COMMANDS.iter().filter(|entry| !entry.summary.is_empty()) {
        rows.push(row(
            format!("{} {}", entry.name, entry.usage),
            entry.summary,
        ));
    }
    rows.push(row("!COMMAND".to_owned(), "run a command on the host"));
    rows.push(row("!".to_owned(), "run a shell on the host"));
    let mut lines = output::table(&rows);
    lines.extend(NOTES.lines().map(str::to_owned));
    lines
}

const NOTES: &str = r"
Also: mget, mput (get, put), copy (cp), exit, quit (bye), ? (help).
REMOTE, LOCAL and PATH can have wildcards: * ? [a-z].
A name with spaces: 'a b' or a\ b. A name with bytes that are not UTF-8: $'a\xff\n'.";

/// The usage of a command.
pub(super) fn usage(name: &str) -> String {
    match COMMANDS.iter().find(|entry| entry.name == name) {
        Some(entry) if !entry.usage.is_empty() => format!("{name} {}", entry.usage),
        _ => name.to_owned(),
    }
}
