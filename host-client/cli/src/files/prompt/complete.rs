//! Completes the last word of a line. The caller provides the names of files.

use rustyline::completion::Pair;

use super::{
    expand::Found,
    line::{self, Quote, SplitLine},
    table::{COMMANDS, Names},
};
use crate::output;

/// A word to complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    /// The offset of the word in the line.
    pub(super) start: usize,
    pub(super) source: Source,
    /// The word up to and including its last slash. Empty for the current directory.
    pub(super) directory: Vec<u8>,
    /// The rest of the word.
    prefix: Vec<u8>,
    quote: Quote,
}

/// The kind of names that complete a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Commands,
    Remote,
    Local,
}

impl Query {
    /// Parses the line up to the cursor; `None` if nothing can be completed there.
    pub(super) fn new(line: &[u8]) -> Option<Self> {
        if line.trim_ascii_start().starts_with(b"!") {
            return None;
        }
        let split = SplitLine::new(line).ok()?;
        if split.is_comment {
            return None;
        }
        let (start, word, quote) = match split.open {
            Some(open) => (open.start, open.word, open.quote),
            None => (line.len(), line::Word::default(), Quote::None),
        };
        let source = match split.words.split_first() {
            None => Source::Commands,
            Some((command, before)) => {
                let is_option = |word: &&line::Word| word.bytes().starts_with(b"-");
                let operand = before.iter().skip_while(is_option).count();
                source(&command.to_string(), operand)?
            }
        };
        let mut bytes = word.0.iter();
        // Wildcards and home directories are not completed.
        if word.is_home() || bytes.any(|byte| !byte.quoted && b"*?[".contains(&byte.value)) {
            return None;
        }
        let mut directory = word.bytes();
        let slash = directory.iter().rposition(|byte| *byte == b'/');
        let prefix = directory.split_off(slash.map_or(0, |at| at + 1));
        Some(Self {
            start,
            source,
            directory,
            prefix,
            quote,
        })
    }

    /// Whether a name completes the word. A name that starts with a dot needs a dot in the word.
    pub(super) fn matches(&self, name: &[u8]) -> bool {
        let is_hidden = name.starts_with(b".") && self.prefix.is_empty();
        name.starts_with(&self.prefix) && !is_hidden
    }

    /// Completions with the matching names, quoted as the word is, or in `$'…'` if that is not
    /// possible.
    pub(super) fn complete(&self, found: &[Found]) -> Vec<Pair> {
        let found = found.iter().filter(|found| self.matches(&found.name));
        let mut found = Vec::from_iter(found);
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let path = |found: &Found| {
            // A leading dash would make it an option.
            let has_dash = self.directory.is_empty() && found.name.starts_with(b"-");
            let here: &[u8] = if has_dash { b"./" } else { b"" };
            let slash: &[u8] = if found.may_be_directory { b"/" } else { b"" };
            [here, &self.directory, &found.name, slash].concat()
        };
        let mut paths = found.iter().map(|found| path(found));
        let quote = if paths.all(|path| line::quote(&path, self.quote).is_some()) {
            self.quote
        } else {
            Quote::Dollar
        };
        let pairs = found.iter().filter_map(|found| {
            let mut replacement = line::quote(&path(found), quote)?;
            let mut display = output::escape(&found.name);
            if found.may_be_directory {
                display.push('/')
            } else {
                replacement.push_str(end(quote))
            }
            Some(Pair {
                display,
                replacement,
            })
        });
        pairs.collect()
    }

    /// Completions with the matching commands.
    pub(super) fn commands(&self) -> Vec<Pair> {
        let names = COMMANDS.iter().map(|entry| entry.name);
        let matching = names.filter(|name| name.as_bytes().starts_with(&self.prefix));
        let pairs = matching.map(|name| Pair {
            display: name.to_owned(),
            replacement: format!("{name} "),
        });
        pairs.collect()
    }
}

/// The end of a completed word.
const fn end(quote: Quote) -> &'static str {
    match quote {
        Quote::None => " ",
        Quote::Double => "\" ",
        Quote::Single | Quote::Dollar => "' ",
    }
}

/// The kind of names for an operand of a command, by its index.
fn source(command: &str, operand: usize) -> Option<Source> {
    let command = command.to_lowercase();
    let entry = COMMANDS.iter().find(|entry| entry.name == command)?;
    Some(match (entry.names, operand) {
        (Names::None, _) | (Names::ValueThenRemote, 0) => return None,
        (Names::Commands, _) => Source::Commands,
        (Names::Remote, _) | (Names::ValueThenRemote, _) => Source::Remote,
        (Names::Local, _) | (Names::LocalThenRemote, 0) => Source::Local,
        (Names::RemoteThenLocal, 0) | (Names::LocalThenRemote, _) => Source::Remote,
        (Names::RemoteThenLocal, _) => Source::Local,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(line: &str) -> Query {
        Query::new(line.as_bytes()).unwrap()
    }

    fn typed(line: &str, names: &[&[u8]]) -> Vec<String> {
        let found = names.iter().map(|name| Found {
            name: name.strip_suffix(b"/").unwrap_or(name).to_vec(),
            may_be_directory: name.ends_with(b"/"),
        });
        let pairs = query(line).complete(&Vec::from_iter(found));
        pairs.into_iter().map(|pair| pair.replacement).collect()
    }

    #[test]
    fn each_operand_is_completed_with_names_of_its_kind() {
        for (line, source) in [
            ("", Source::Commands),
            ("g", Source::Commands),
            ("get ", Source::Remote),
            ("get -r a", Source::Remote),
            ("get a ", Source::Local),
            ("put ", Source::Local),
            ("PUT a ", Source::Remote),
            ("lcd ", Source::Local),
            ("chmod 1 ", Source::Remote),
            ("ls a b ", Source::Remote),
            ("help ", Source::Commands),
        ] {
            assert_eq!(query(line).source, source, "{line}");
        }
        for line in [
            "pwd ", "chmod ", "!ls ", "ls # ", "what ", "ls *", r"ls $'\q", "ls ~/",
        ] {
            assert_eq!(Query::new(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn commands_are_completed() {
        let pairs = query("re").commands();
        let names: Vec<&str> = pairs.iter().map(|pair| &pair.replacement[..]).collect();
        assert_eq!(names, ["reget ", "rename ", "reput "]);
    }

    #[test]
    fn completion_replaces_the_word_and_searches_its_directory() {
        let query = query(r#"get "a b/c"#);
        assert_eq!((query.start, &query.directory[..]), (4, &b"a b/"[..]));
        assert!(query.matches(b"cd") && !query.matches(b"d"));
    }

    #[test]
    fn completed_names_are_quoted_as_the_word_is() {
        assert_eq!(typed("get ", &[b"b c", b"a/"]), ["a/", r"b\ c "]);
        assert_eq!(typed("get 'b", &[b"b c", b"b d/"]), ["'b c' ", "'b d/"]);
        assert_eq!(typed(r"get \*", &[b"*x", b"y"]), [r"\*x "]);
        assert_eq!(typed("get d/x", &[b"xy"]), ["d/xy "]);
        assert_eq!(typed("get ", &[b"-r", b"~x"]), ["./-r ", r"\~x "]);
        assert_eq!(typed("get d/", &[b"-r", b"~x"]), ["d/-r ", "d/~x "]);
    }

    #[test]
    fn completed_names_that_are_not_utf8_have_escapes() {
        assert_eq!(typed("get a", &[b"a\xff", b"ab"]), ["$'ab' ", r"$'a\xff' "]);
        assert_eq!(typed(r"get $'a\xf", &[b"a\xff"]), [r"$'a\xff' "]);
    }

    #[test]
    fn hidden_names_are_completed_after_a_dot_only() {
        assert_eq!(typed("get ", &[b".a", b"b"]), ["b "]);
        assert_eq!(typed("get .", &[b".a", b"b"]), [".a "]);
    }

    #[test]
    fn displayed_completions_are_escaped() {
        let found = [Found {
            name: b"a\x1b[2J".to_vec(),
            may_be_directory: false,
        }];
        let pair = query("get ").complete(&found).remove(0);
        assert_eq!(
            (&pair.display[..], &pair.replacement[..]),
            (r"a\x1b[2J", r"$'a\x1b[2J' ")
        );
    }
}
