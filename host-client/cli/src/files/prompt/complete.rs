//! What a tab completes: which part of a line, by names of what, and how they are typed.
//!
//! No I/O: the caller provides the names.

use super::{
    expand::Found,
    line::{self, Cut, Quote},
    table::{COMMANDS, Names},
};
use crate::output;

/// What is to be completed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Question {
    /// Where the word starts that is replaced.
    pub(super) start: usize,
    pub(super) source: Source,
    /// The word up to its last slash, that included.
    directory: Vec<u8>,
    /// What the name starts with.
    prefix: Vec<u8>,
    quote: Quote,
}

/// Where names come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Commands,
    Remote,
    Local,
}

/// One way to go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// For the list of all.
    pub(super) shown: String,
    /// Replaces the word.
    pub(super) typed: String,
}

impl Question {
    /// Reads the line up to the cursor; `None` where nothing can be completed.
    pub(super) fn new(line: &[u8]) -> Option<Self> {
        if line.trim_ascii_start().starts_with(b"!") {
            return None;
        }
        let cut = Cut::new(line).ok()?;
        if cut.is_comment {
            return None;
        }
        let (start, word, quote) = match cut.open {
            Some(open) => (open.start, open.word, open.quote),
            None => (line.len(), line::Word::default(), Quote::None),
        };
        let source = match cut.words.split_first() {
            None => Source::Commands,
            Some((command, before)) => {
                let is_option = |word: &&line::Word| word.bytes().starts_with(b"-");
                let operand = before.iter().skip_while(is_option).count();
                source(&command.to_string(), operand)?
            }
        };
        let bytes = word.bytes();
        // Neither wildcards nor homes are names.
        let is_home = word.is_home();
        if is_home
            || word
                .0
                .iter()
                .any(|byte| !byte.quoted && b"*?[".contains(&byte.value))
        {
            return None;
        }
        let name = bytes
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |at| at + 1);
        Some(Self {
            start,
            source,
            directory: bytes[..name].to_vec(),
            prefix: bytes[name..].to_vec(),
            quote,
        })
    }

    /// The directory to look in; empty for where one is.
    pub(super) fn directory(&self) -> &[u8] {
        &self.directory
    }

    /// Whether a name is one to go on with. Those that start with a dot have to be asked for.
    pub(super) fn fits(&self, name: &[u8]) -> bool {
        let is_hidden = name.starts_with(b".") && self.prefix.is_empty();
        name.starts_with(&self.prefix) && !is_hidden
    }

    /// The names that match, quoted as the start of the word, or in `$'…'` if that is not possible.
    pub(super) fn answers(&self, found: &[Found]) -> Vec<Answer> {
        let mut found: Vec<&Found> = found
            .iter()
            .filter(|found| self.fits(&found.name))
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        let whole = |found: &Found| {
            // What starts with a dash would be taken for options.
            let has_dash = self.directory.is_empty() && found.name.starts_with(b"-");
            let here: &[u8] = if has_dash { b"./" } else { b"" };
            let slash: &[u8] = if found.may_be_directory { b"/" } else { b"" };
            [here, &self.directory, &found.name, slash].concat()
        };
        let can = |quote| {
            found
                .iter()
                .all(|found| line::quote(&whole(found), quote).is_some())
        };
        let quote = if can(self.quote) {
            self.quote
        } else {
            Quote::Dollar
        };
        let answers = found.iter().filter_map(|found| {
            let mut typed = line::quote(&whole(found), quote)?;
            let mut shown = output::escape(&found.name);
            if found.may_be_directory {
                shown.push('/')
            } else {
                typed.push_str(end(quote))
            }
            Some(Answer { shown, typed })
        });
        answers.collect()
    }

    /// The commands that fit.
    pub(super) fn commands(&self) -> Vec<Answer> {
        let names = COMMANDS.iter().map(|entry| entry.name);
        let fits = names.filter(|name| name.as_bytes().starts_with(&self.prefix));
        fits.map(|name| Answer {
            shown: name.to_owned(),
            typed: format!("{name} "),
        })
        .collect()
    }
}

/// What ends a word.
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

    fn ask(line: &str) -> Question {
        Question::new(line.as_bytes()).unwrap()
    }

    fn typed(line: &str, names: &[&[u8]]) -> Vec<String> {
        let found = names.iter().map(|name| Found {
            name: name.strip_suffix(b"/").unwrap_or(name).to_vec(),
            may_be_directory: name.ends_with(b"/"),
        });
        let answers = ask(line).answers(&Vec::from_iter(found));
        answers.into_iter().map(|answer| answer.typed).collect()
    }

    #[test]
    fn each_place_has_names_of_its_own() {
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
            assert_eq!(ask(line).source, source, "{line}");
        }
        for line in [
            "pwd ", "chmod ", "!ls ", "ls # ", "what ", "ls *", r"ls $'\q", "ls ~/",
        ] {
            assert_eq!(Question::new(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn commands_are_completed() {
        let answers = ask("re").commands();
        let names: Vec<&str> = answers.iter().map(|answer| &answer.typed[..]).collect();
        assert_eq!(names, ["reget ", "rename ", "reput "]);
    }

    #[test]
    fn the_word_is_replaced_from_its_start_and_looked_for_below_its_directory() {
        let question = ask(r#"get "a b/c"#);
        assert_eq!((question.start, question.directory()), (4, &b"a b/"[..]));
        assert!(question.fits(b"cd") && !question.fits(b"d"));
    }

    #[test]
    fn names_are_typed_as_the_word_was_begun() {
        assert_eq!(typed("get ", &[b"b c", b"a/"]), ["a/", r"b\ c "]);
        assert_eq!(typed("get 'b", &[b"b c", b"b d/"]), ["'b c' ", "'b d/"]);
        assert_eq!(typed(r"get \*", &[b"*x", b"y"]), [r"\*x "]);
        assert_eq!(typed("get d/x", &[b"xy"]), ["d/xy "]);
        assert_eq!(typed("get ", &[b"-r", b"~x"]), ["./-r ", r"\~x "]);
        assert_eq!(typed("get d/", &[b"-r", b"~x"]), ["d/-r ", "d/~x "]);
    }

    #[test]
    fn names_that_are_no_text_are_typed_with_escapes() {
        assert_eq!(typed("get a", &[b"a\xff", b"ab"]), ["$'ab' ", r"$'a\xff' "]);
        assert_eq!(typed(r"get $'a\xf", &[b"a\xff"]), [r"$'a\xff' "]);
    }

    #[test]
    fn hidden_names_have_to_be_asked_for() {
        assert_eq!(typed("get ", &[b".a", b"b"]), ["b "]);
        assert_eq!(typed("get .", &[b".a", b"b"]), [".a "]);
    }

    #[test]
    fn what_is_shown_cannot_reach_the_terminal() {
        let found = [Found {
            name: b"a\x1b[2J".to_vec(),
            may_be_directory: false,
        }];
        let answer = ask("get ").answers(&found).remove(0);
        assert_eq!(
            (&answer.shown[..], &answer.typed[..]),
            (r"a\x1b[2J", r"$'a\x1b[2J' ")
        );
    }
}
