//! Parses the command line.

use std::{
    env,
    ffi::{OsStr, OsString},
};

use lexopt::{
    Arg::{Long, Short, Value},
    Parser,
};
use tracing::Level;
use vsock_agent_protocol::sftp::SessionOptions;

use super::{ConfigError, options::Options};
use crate::sftp;

/// The output of `--help`.
const HELP: &str = include_str!("help.txt");

/// The output of `sftp-server --help`.
const SFTP_HELP: &str = include_str!("sftp_help.txt");

const VERSION: &str = concat!("vsock-agent ", env!("CARGO_PKG_VERSION"), "\n");

/// The parsed command line.
#[derive(Debug, Clone)]
pub(crate) enum CommandLine {
    /// Print this text.
    Print(&'static str),
    /// Serve SFTP on standard input and output.
    Sftp(SessionOptions),
    /// Run the agent, or fetch the config share.
    Serve(Box<Flags>),
}

/// The options from arguments and environment.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    pub(super) options: Options,
    ignored: Vec<OsString>,
}

impl Flags {
    /// Whether only the config share is to be copied.
    #[must_use]
    pub fn fetches_share(&self) -> bool {
        self.options.fetch_share == Some(true)
    }

    /// Positional arguments. They are ignored, as by LXD's agent.
    #[must_use]
    pub fn ignored(&self) -> &[OsString] {
        &self.ignored
    }

    /// Whether debug logging is requested.
    #[must_use]
    pub fn debugs(&self) -> bool {
        self.options.debug == Some(true)
    }

    /// The log level. `--log` has precedence over the flags of LXD's agent.
    pub(super) fn level(&self) -> Option<Level> {
        let debug = self.debugs().then_some(Level::DEBUG);
        let verbose = self.options.verbose.map(|_| Level::INFO);
        self.options.log.or(debug).or(verbose)
    }
}

impl CommandLine {
    /// Parses the arguments and the environment of this process.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Arguments`] and [`ConfigError::Value`].
    pub(crate) fn read() -> Result<Self, ConfigError> {
        let mut line = Self::of(env::args_os().skip(1))?;
        if let Self::Serve(flags) = &mut line {
            let environment = Options::of_environment(|key| env::var_os(key))?;
            flags.options = std::mem::take(&mut flags.options).or(environment);
        }
        Ok(line)
    }

    /// Parses arguments, without the program name.
    pub(super) fn of(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ConfigError> {
        let mut arguments: Vec<OsString> = arguments.into_iter().collect();
        let sftp = OsStr::new(sftp::SUB_COMMAND);
        match &arguments[..] {
            [help] if help == "help" => Ok(Self::Print(HELP)),
            [help, command] if help == "help" && command == sftp => Ok(Self::Print(SFTP_HELP)),
            [command, ..] if command == sftp => {
                sftp_server(Parser::from_args(arguments.drain(1..)))
            }
            _ => serve(Parser::from_args(arguments)),
        }
    }
}

fn serve(mut parser: Parser) -> Result<CommandLine, ConfigError> {
    let mut flags = Flags::default();
    while let Some(argument) = parser.next()? {
        let name = match argument {
            Short('h') | Long("help") => return Ok(CommandLine::Print(HELP)),
            Short('V') | Long("version") => return Ok(CommandLine::Print(VERSION)),
            Short('d') => "debug".to_owned(),
            Short('s') | Long("secrets-location") => "identity".to_owned(),
            Short('v') => "verbose".to_owned(),
            Long(name) if Options::is_switch(name).is_some() => name.to_owned(),
            Value(word) => {
                flags.ignored.push(word);
                continue;
            }
            unknown => return Err(unknown.unexpected().into()),
        };
        let value = match Options::is_switch(&name) {
            Some(true) => "true".into(),
            _ => value(&mut parser, &name)?,
        };
        flags.options.add(&name, &value, || format!("--{name}"))?;
    }
    Ok(CommandLine::Serve(flags.into()))
}

fn sftp_server(mut parser: Parser) -> Result<CommandLine, ConfigError> {
    let mut options = SessionOptions::default();
    while let Some(argument) = parser.next()? {
        let (name, option) = match argument {
            Short('h') | Long("help") => return Ok(CommandLine::Print(SFTP_HELP)),
            Long("read-only") => {
                options.read_only = true;
                continue;
            }
            Long("root") => ("root", &mut options.root),
            Long("user") => ("user", &mut options.user),
            unknown => return Err(unknown.unexpected().into()),
        };
        let value = value(&mut parser, name)?.into_string();
        if option
            .replace(value.map_err(lexopt::Error::from)?)
            .is_some()
        {
            return Err(lexopt::Error::from(format!("--{name} can be given only once")).into());
        }
    }
    Ok(CommandLine::Sftp(options))
}

/// The value of an option: after an equals sign, or the next argument unless it is an option.
fn value(parser: &mut Parser, name: &str) -> Result<OsString, lexopt::Error> {
    if let Some(value) = parser.optional_value() {
        return Ok(value);
    }
    let is_value = |word: &OsStr| word == "-" || !word.as_encoded_bytes().starts_with(b"-");
    let value = parser.raw_args()?.next_if(is_value);
    value.ok_or_else(|| format!("--{name} needs a value").into())
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::{
        super::options::{NOT_IN_ENVIRONMENT, NOT_IN_FILE},
        *,
    };

    fn read(words: &[&str]) -> Result<CommandLine, String> {
        CommandLine::of(words.iter().map(Into::into))
            .map_err(|error| format!("{:#}", anyhow::Error::from(error)))
    }

    fn printed(words: &[&str]) -> &'static str {
        match read(words).unwrap() {
            CommandLine::Print(text) => text,
            other => panic!("{other:?}"),
        }
    }

    /// The help text of each option by its name, in one line.
    fn options(help: &str) -> BTreeMap<&str, String> {
        let (_, lines) = help.split_once("\nOptions:\n").unwrap();
        let mut options: BTreeMap<&str, String> = BTreeMap::new();
        let mut name = "";
        for line in lines.lines().map(str::trim_start) {
            let option = line.strip_prefix('-').filter(|_| !line.starts_with("-- "));
            if option.is_some() {
                let (_, long) = line.split_once("--").unwrap();
                name = long.split_whitespace().next().unwrap();
            }
            let text = options.entry(name).or_default();
            *text = format!("{text} {line}");
        }
        options
    }

    #[test]
    fn the_help_has_every_option_with_its_type() {
        let mut help = options(HELP);
        assert!(help.remove("help").is_some() && help.remove("version").is_some());
        let names: BTreeSet<String> = Options::names().collect();
        let in_help: BTreeSet<String> = help.keys().map(ToString::to_string).collect();
        assert_eq!(names, in_help);
        for (name, text) in help {
            let takes_value = text.contains(&format!("--{name} <"));
            assert_eq!(Options::is_switch(name), Some(!takes_value), "{text}");
            for (mark, names) in [
                ("[not in the environment]", NOT_IN_ENVIRONMENT),
                ("[not in the file]", NOT_IN_FILE),
            ] {
                assert_eq!(text.contains(mark), names.contains(&name), "{text}");
            }
            let mut options = Options::default();
            let mut add = |value: &str| options.add(name, OsStr::new(value), String::new);
            let values = ["true", "1", "unix:/a", "lxd", "exec", "info", "/bin/a"];
            let value = values.into_iter().find(|value| add(value).is_ok());
            let may_be_repeated = add(value.unwrap()).is_ok();
            assert_eq!(text.contains("May be repeated"), may_be_repeated, "{text}");
        }
        let mut lines = HELP.lines().chain(SFTP_HELP.lines());
        assert_eq!(lines.find(|line| line.len() > 100), None);
    }

    #[test]
    fn the_help_has_the_short_names() {
        for (short, name, value) in [
            ("-s", "identity", Some("/a")),
            ("-d", "debug", None),
            ("-v", "verbose", None),
        ] {
            assert!(HELP.contains(&format!("  {short}, --{name} ")), "{short}");
            let words: Vec<&str> = [short].into_iter().chain(value).collect();
            read(&words).unwrap();
        }
        assert_eq!(printed(&["-h"]), HELP);
        assert!(printed(&["-V"]).starts_with("vsock-agent 0."));
    }

    #[test]
    fn the_help_of_sftp_server_has_its_options() {
        let help = options(SFTP_HELP);
        let names: Vec<&str> = help.keys().copied().collect();
        assert_eq!(names, ["help", "read-only", "root", "user"]);
        let words = ["sftp-server", "--read-only", "--root=/a", "--user", "ann"];
        let CommandLine::Sftp(options) = read(&words).unwrap() else {
            panic!("no sub-command");
        };
        let expected = SessionOptions::default()
            .with_user("ann")
            .with_root("/a")
            .with_read_only(true);
        assert_eq!(options, expected);
    }

    #[test]
    fn help_is_printed_by_option_and_by_command() {
        for words in [&["help"][..], &["--help"], &["--plain", "-h", "--family"]] {
            assert_eq!(printed(words), HELP);
        }
        for words in [["sftp-server", "--help"], ["help", "sftp-server"]] {
            assert_eq!(printed(&words), SFTP_HELP);
        }
    }

    #[test]
    fn options_may_be_clustered_and_have_equals_signs() {
        let words = [
            "-dvs/a",
            "--allow-cid=3,4",
            "--allow-cid",
            "5",
            "--",
            "--plain",
            "-x",
        ];
        let CommandLine::Serve(flags) = read(&words).unwrap() else {
            panic!("not to serve");
        };
        assert_eq!(flags.ignored(), ["--plain", "-x"]);
        assert!(flags.debugs() && flags.options.verbose == Some(true));
        assert_eq!(flags.options.identity, Some("/a".into()));
        assert_eq!(flags.options.allow_cid.unwrap().len(), 3);
        assert_eq!(flags.options.plain, None);
    }

    #[test]
    fn invalid_arguments_are_named_in_the_error() {
        for (words, reason) in [
            (&["--foo"][..], "'--foo'"),
            (&["--allow_cid", "2"], "'--allow_cid'"),
            (&["-x"], "'-x'"),
            (&["--family"], "--family needs a value"),
            (&["--family", "--plain"], "--family needs a value"),
            (&["--family", "docker"], "--family: \"docker\" is neither"),
            (
                &["--family", "lxd", "--family", "lxd"],
                "--family: it can be given only once",
            ),
            (
                &["-s", "/a", "--secrets-location=/b"],
                "--identity: it can be given only once",
            ),
            (&["--identity="], "--identity: a value is missing"),
            (&["-d", "--debug"], "--debug: it can be given only once"),
            (&["--plain=1"], "'--plain'"),
            (&["--ready-timeout", "x"], "--ready-timeout: "),
            (&["sftp-server", "more"], "\"more\""),
            (&["sftp-server", "--plain"], "'--plain'"),
            (&["sftp-server", "--user"], "--user needs a value"),
            (
                &["sftp-server", "--root=/a", "--root=/b"],
                "--root can be given only once",
            ),
        ] {
            let error = read(words).unwrap_err();
            assert!(error.contains(reason), "{words:?}: {error}");
        }
    }
}
