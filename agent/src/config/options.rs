//! The options. One [`Options`] is parsed from the arguments, one from the environment and one from the
//! configuration file; then they are merged.
//!
//! An option has the same name in all three: `--allow-cid`, `VSOCK_AGENT_ALLOW_CID`, `allow-cid`.

use std::{
    error::Error,
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use toml::de::{DeTable, DeValue};
use tracing::Level;
use vsock_agent_metadata::toml_file;
use vsock_agent_protocol::{address::Cid, version::Family};

use super::{CloudInit, ConfigError, Feature, guest::Host};
use crate::{exec::CommandPattern, http::listen::ListenAddress};

/// Options that are not allowed in the file: its own path, and options for one start.
pub(super) const NOT_IN_FILE: [&str; 4] = ["config", "debug", "fetch-share", "verbose"];

/// Options that are not allowed in the environment: command patterns, which may contain commas, and options
/// for one start.
pub(super) const NOT_IN_ENVIRONMENT: [&str; 4] =
    ["debug", "exec-commands", "fetch-share", "verbose"];

/// The error of an option's value.
pub(super) type Fault = Box<dyn Error + Send + Sync>;

macro_rules! options {
    ($($field:ident: $type:ty,)*) => {
        /// The values of the options that are set.
        #[derive(Debug, Clone, Default)]
        pub(super) struct Options {
            $(pub(super) $field: Option<$type>,)*
        }

        impl Options {
            /// The names of all options: the field names with hyphens.
            pub(super) fn names() -> impl Iterator<Item = String> {
                [$(stringify!($field)),*].into_iter().map(|field| field.replace('_', "-"))
            }

            fn field(&mut self, name: &str) -> Option<&mut dyn Field> {
                let field = name.replace('-', "_");
                $(if field == stringify!($field) && !name.contains('_') {
                    return Some(&mut self.$field);
                })*
                None
            }

            /// Merges two sets of options. `self` has precedence.
            pub(super) fn or(self, other: Self) -> Self {
                Self { $($field: self.$field.or(other.$field),)* }
            }
        }
    };
}

options! {
    allow_cid: Vec<Cid>,
    cloud_init: CloudInit,
    cloud_init_reboot: bool,
    config: PathBuf,
    debug: bool,
    end_commands: bool,
    exec_commands: Vec<CommandPattern>,
    exec_users: Vec<String>,
    family: Family,
    features: Vec<Feature>,
    fetch_share: bool,
    guest_socket: Vec<PathBuf>,
    host: Host,
    identity: PathBuf,
    listen: Vec<ListenAddress>,
    log: Level,
    metadata: Vec<String>,
    metadata_all_users: bool,
    metadata_token: bool,
    plain: bool,
    ready_timeout: u64,
    share: PathBuf,
    verbose: bool,
}

impl Options {
    /// Whether the option takes no value as an argument. `None` for an unknown option.
    pub(super) fn is_switch(name: &str) -> Option<bool> {
        Self::default().field(name).map(|field| field.is_switch())
    }

    /// Adds a value of the arguments or the environment.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] with `origin`.
    pub(super) fn add(
        &mut self,
        name: &str,
        text: &OsStr,
        origin: impl FnOnce() -> String,
    ) -> Result<(), ConfigError> {
        let added = match self.field(name) {
            None => Err("unknown option".into()),
            Some(field) => field.add(text),
        };
        added.map_err(|source| ConfigError::value(name, origin(), source))
    }

    /// Reads the options from the environment.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`].
    pub(super) fn of_environment(
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let mut options = Self::default();
        for name in Self::names().filter(|name| !NOT_IN_ENVIRONMENT.contains(&&**name)) {
            let key = format!("VSOCK_AGENT_{}", name.replace('-', "_").to_uppercase());
            if let Some(text) = variable(&key) {
                options.add(&name, &text, || key)?;
            }
        }
        Ok(options)
    }

    /// Reads the options from the configuration file.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Read`], [`ConfigError::Parse`] and [`ConfigError::Value`].
    pub(super) fn of_file(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::of_toml(path, &text)
    }

    /// Parses the content of the file.
    pub(super) fn of_toml(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let invalid = |byte, reason| ConfigError::Parse {
            path: path.to_owned(),
            line: toml_file::line(text, byte),
            reason,
        };
        let table = DeTable::parse(text).map_err(|error| {
            let byte = error.span().unwrap_or_default().start;
            invalid(byte, error.message().to_owned())
        })?;
        let mut options = Self::default();
        for (key, value) in table.get_ref() {
            let name = key.get_ref().as_ref();
            let is_here = !NOT_IN_FILE.contains(&name);
            let Some(field) = options.field(name).filter(|_| is_here) else {
                let reason = format!("unknown option {name:?}, expected one of {}", in_file());
                return Err(invalid(key.span().start, reason));
            };
            field.set(value.get_ref()).map_err(|source| {
                let line = toml_file::line(text, value.span().start);
                ConfigError::value(
                    name,
                    format!("{}, line {line}: {name}", path.display()),
                    source,
                )
            })?;
        }
        Ok(options)
    }
}

fn in_file() -> String {
    let mut names: Vec<String> = Options::names().collect();
    names.retain(|name| !NOT_IN_FILE.contains(&name.as_str()));
    names.join(", ")
}

/// A field of [`Options`], of any type.
trait Field {
    fn is_switch(&self) -> bool;

    fn add(&mut self, text: &OsStr) -> Result<(), Fault>;

    fn set(&mut self, value: &DeValue<'_>) -> Result<(), Fault>;
}

impl<T: Value> Field for Option<T> {
    fn is_switch(&self) -> bool {
        T::IS_SWITCH
    }

    fn add(&mut self, text: &OsStr) -> Result<(), Fault> {
        if self.is_some() {
            return Err("it can be given only once".into());
        }
        *self = Some(T::of_word(text)?);
        Ok(())
    }

    fn set(&mut self, value: &DeValue<'_>) -> Result<(), Fault> {
        *self = Some(T::of_value(value)?);
        Ok(())
    }
}

impl<T: Value> Field for Option<Vec<T>> {
    fn is_switch(&self) -> bool {
        false
    }

    fn add(&mut self, text: &OsStr) -> Result<(), Fault> {
        let list = self.get_or_insert_default();
        let is_separator = |byte: &u8| *byte == b',' && !T::HAS_COMMAS;
        for word in text.as_bytes().split(is_separator) {
            list.push(T::of_word(OsStr::from_bytes(word))?);
        }
        Ok(())
    }

    fn set(&mut self, value: &DeValue<'_>) -> Result<(), Fault> {
        let list = value.as_array().ok_or("expected a list")?;
        let values = list.iter().map(|value| T::of_value(value.get_ref()));
        *self = Some(values.collect::<Result<_, _>>()?);
        Ok(())
    }
}

/// The type of a value.
trait Value: Sized {
    /// Whether an argument has no value, and means true.
    const IS_SWITCH: bool = false;

    /// Whether a value may contain commas. Otherwise they separate the values of a list.
    const HAS_COMMAS: bool = false;

    /// Parses a non-empty text.
    fn of_text(text: &OsStr) -> Result<Self, Fault>;

    /// Parses a value of the arguments or the environment.
    fn of_word(word: &OsStr) -> Result<Self, Fault> {
        if word.is_empty() {
            Err("a value is missing".into())
        } else {
            Self::of_text(word)
        }
    }

    /// Parses a value of the file.
    fn of_value(value: &DeValue<'_>) -> Result<Self, Fault> {
        let text = value.as_str().ok_or("expected a string")?;
        Self::of_text(OsStr::new(text))
    }
}

impl Value for bool {
    const IS_SWITCH: bool = true;

    fn of_text(text: &OsStr) -> Result<Self, Fault> {
        parsed(text).map_err(|_| "expected true or false".into())
    }

    fn of_value(value: &DeValue<'_>) -> Result<Self, Fault> {
        value.as_bool().ok_or("expected true or false".into())
    }
}

impl Value for u64 {
    fn of_text(text: &OsStr) -> Result<Self, Fault> {
        parsed(text)
    }

    fn of_value(value: &DeValue<'_>) -> Result<Self, Fault> {
        toml_file::number(value).ok_or("expected a number".into())
    }
}

impl Value for Cid {
    fn of_text(text: &OsStr) -> Result<Self, Fault> {
        parsed(text)
    }

    fn of_value(value: &DeValue<'_>) -> Result<Self, Fault> {
        let number = toml_file::number(value).map(Self);
        number.ok_or("expected a number of 32 bits".into())
    }
}

impl Value for PathBuf {
    fn of_text(text: &OsStr) -> Result<Self, Fault> {
        Ok(text.into())
    }
}

impl Value for Level {
    fn of_text(text: &OsStr) -> Result<Self, Fault> {
        parsed(text).map_err(|_| {
            format!("{text:?} is not a log level: error, warn, info, debug or trace").into()
        })
    }
}

impl Value for CommandPattern {
    const HAS_COMMAS: bool = true;

    fn of_text(text: &OsStr) -> Result<Self, Fault> {
        parsed(text)
    }
}

macro_rules! texts {
    ($($type:ty),*) => {
        $(impl Value for $type {
            fn of_text(text: &OsStr) -> Result<Self, Fault> {
                parsed(text)
            }
        })*
    };
}

texts!(CloudInit, Family, Feature, Host, ListenAddress, String);

fn parsed<T: FromStr<Err: Into<Fault>>>(text: &OsStr) -> Result<T, Fault> {
    let text = text.to_str().ok_or("it is not UTF-8")?;
    text.parse().map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Result<Options, ConfigError> {
        Options::of_environment(|key| {
            let mut variables = variables.iter();
            let found = variables.find(|(name, _)| *name == key);
            found.map(|(_, value)| value.into())
        })
    }

    fn read(text: &str) -> Result<Options, ConfigError> {
        Options::of_toml(Path::new("/etc/file"), text)
    }

    fn message(error: ConfigError) -> String {
        format!("{:#}", anyhow::Error::from(error))
    }

    #[test]
    fn options_are_read_from_the_environment() {
        let variables = [
            ("VSOCK_AGENT_ALLOW_CID", "2,host,3"),
            ("VSOCK_AGENT_PLAIN", "true"),
            ("VSOCK_AGENT_GUEST_SOCKET", "/a,/b"),
            ("VSOCK_AGENT_READY_TIMEOUT", "7"),
            ("VSOCK_AGENT_DEBUG", "true"),
            ("VSOCK_AGENT_EXEC_COMMANDS", "/bin/df"),
        ];
        let options = environment(&variables).unwrap();
        assert_eq!(options.allow_cid, Some(vec![Cid(2), Cid::HOST, Cid(3)]));
        assert_eq!(options.plain, Some(true));
        assert_eq!(options.guest_socket, Some(vec!["/a".into(), "/b".into()]));
        assert_eq!(options.ready_timeout, Some(7));
        assert_eq!(options.debug, None);
        assert_eq!(options.exec_commands, None);
    }

    #[test]
    fn an_invalid_value_is_refused_with_its_origin() {
        for (variable, value, reason) in [
            ("VSOCK_AGENT_PLAIN", "1", "true or false"),
            ("VSOCK_AGENT_PLAIN", "", "missing"),
            ("VSOCK_AGENT_IDENTITY", "", "missing"),
            ("VSOCK_AGENT_LISTEN", "unix:/a,b", "\"b\""),
            ("VSOCK_AGENT_FEATURES", "exec,,files", "missing"),
            ("VSOCK_AGENT_READY_TIMEOUT", "-1", "digit"),
        ] {
            let error = message(environment(&[(variable, value)]).unwrap_err());
            assert!(error.starts_with(&format!("{variable}: ")), "{error}");
            assert!(error.contains(reason), "{error}");
        }
        for (text, reason) in [
            ("listen = \"unix:/a\"", "listen: expected a list"),
            ("listen = [\n\"unix:/a\", 1]", "listen: expected a string"),
            ("identity = 1", "identity: expected a string"),
            ("plain = \"true\"", "plain: expected true or false"),
            ("allow-cid = [\"host\"]", "allow-cid: expected a number"),
            ("allow-cid = [4294967296]", "allow-cid: expected a number"),
            ("ready-timeout = -1", "ready-timeout: expected a number"),
            ("ready-timeout = \"1\"", "ready-timeout: expected a number"),
            ("log = \"loud\"", "\"loud\" is not a log level"),
        ] {
            let error = message(read(&format!("\n{text}")).unwrap_err());
            assert!(error.starts_with("/etc/file, line 2: "), "{error}");
            assert!(error.contains(reason), "{error}");
        }
        for name in NOT_IN_FILE {
            let error = message(read(&format!("{name} = true")).unwrap_err());
            assert!(
                error.contains("line 1: ") && error.contains("allow-cid, "),
                "{error}"
            );
        }
        let error = message(read("plain = true\nplain = true\n").unwrap_err());
        assert!(
            error.contains("line 2: ") && error.contains("duplicate"),
            "{error}"
        );
    }

    #[test]
    fn a_command_pattern_may_contain_commas() {
        let mut options = Options::default();
        for text in ["/bin/a b,c", "/bin/d"] {
            let origin = || "--exec-commands".to_owned();
            options
                .add("exec-commands", OsStr::new(text), origin)
                .unwrap();
        }
        let file = read("exec-commands = [\"/bin/a b,c\", \"/bin/d\"]").unwrap();
        assert_eq!(options.exec_commands.as_ref().unwrap().len(), 2);
        assert_eq!(options.exec_commands, file.exec_commands);
    }

    #[test]
    fn a_path_need_not_be_utf_8() {
        let path = OsStr::from_bytes(b"/a\xff");
        let options =
            Options::of_environment(|key| (key == "VSOCK_AGENT_SHARE").then(|| path.to_owned()));
        assert_eq!(options.unwrap().share, Some(path.into()));
    }
}
