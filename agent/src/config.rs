//! What the agent is told: configuration file, then environment, then flags; the last one wins.
//!
//! Everything is read and checked before anything is bound. The same names are used in all three
//! places: `--allow-cid`, `VSOCK_AGENT_ALLOW_CID`, `allow-cid`.

mod features;
mod folders;
mod guest;
mod program;

use std::{
    env,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use serde::Deserialize;
use tracing::Level;
use vsock_agent_protocol::{
    address::{Cid, DEFAULT_PORT, ParseAddressError, VsockAddress},
    version::{Family, ParseFamilyError},
};

use self::{folders::Folders, program::Program};
use crate::{
    config_share::{self, ConfigShare},
    exec::{CommandPattern, ExecPolicy, ParsePatternError},
    listen::{ListenAddress, ParseListenError},
    presets::{Preset, PresetConfig, PresetError},
    status_port,
};

pub use self::features::{Feature, Features, FeaturesError};
pub use self::guest::{CloudInit, GuestConfig, ParseCloudInitError};

/// Read when no other file is named and this one is there.
const DEFAULT_FILE: &str = "/etc/vsock-agent/config.toml";

/// The whole configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where to listen; at least one.
    pub listen: Vec<ListenAddress>,
    /// How to know who connects.
    pub security: Security,
    /// The machines whose AF_VSOCK connections are let in; all others are closed unread.
    pub allowed_cids: Vec<Cid>,
    /// Whether running commands are ended when the agent stops. If not they go on without it, but
    /// nobody reads their output any more.
    pub end_commands: bool,
    /// Whose hosts the agent is made for.
    pub family: Family,
    /// What the host may do.
    pub features: Features,
    /// Which commands it may run.
    pub exec_policy: ExecPolicy,
    /// Where instance data come from, and who in the guest gets them.
    pub guest: GuestConfig,
    /// Least important events that are logged.
    pub log: Level,
    /// The folder that is the guest's `/`: for files and mounts of the host, and for cloud-init.
    pub root: PathBuf,
    /// What the host says before it can be asked.
    pub share: Option<ConfigShare>,
    /// The virtio ports by which a host hears that the agent is there; those that are missing are
    /// passed over.
    pub status_ports: Vec<PathBuf>,
}

/// How the agent knows who connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// Mutual TLS with the identity in this folder: `agent.crt`, `agent.key`, and `server.crt`,
    /// the certificates of the clients.
    Tls(PathBuf),
    /// Not at all: everybody who can reach a listener is root in the guest.
    Plain,
}

/// Runs commands and moves files in this virtual machine for its host, over AF_VSOCK.
#[derive(Debug, Clone, Default, Parser)]
#[command(name = "vsock-agent", version, max_term_width = 100)]
pub struct Flags {
    /// Where to listen: vsock:CID:PORT or unix:PATH. May be repeated [default: vsock:any:8443]
    #[arg(
        long,
        value_name = "URI",
        env = "VSOCK_AGENT_LISTEN",
        value_delimiter = ','
    )]
    listen: Vec<String>,

    /// Folder with agent.crt, agent.key and server.crt [default: the first that has them of the
    /// working directory if it is nobody else's, /run/vsock-agent/share, systemd's credentials, /etc/vsock-agent]
    #[arg(
        short = 's',
        long,
        visible_alias = "secrets-location",
        value_name = "DIR",
        env = "VSOCK_AGENT_IDENTITY"
    )]
    identity: Option<PathBuf>,

    /// Folder with what the host says at the start: agent.conf, agent-mounts.json, nics/ and
    /// files/ [default: the folder of the identity]
    #[arg(long, value_name = "DIR", env = "VSOCK_AGENT_SHARE")]
    share: Option<PathBuf>,

    /// Serve without TLS: everybody who can reach a listener is root in this machine
    #[arg(long, env = "VSOCK_AGENT_PLAIN")]
    plain: bool,

    /// Machine whose connections are let in, by context id. May be repeated [default: 2, the host]
    #[arg(
        long,
        value_name = "CID",
        env = "VSOCK_AGENT_ALLOW_CID",
        value_delimiter = ','
    )]
    allow_cid: Vec<String>,

    /// End the running commands when the agent stops; they go on otherwise
    #[arg(long, env = "VSOCK_AGENT_END_COMMANDS")]
    end_commands: bool,

    /// Whose hosts to speak to: lxd or incus. Decides the agent's name and the shape of its
    /// metrics [default: lxd]
    #[arg(long, value_name = "FAMILY", env = "VSOCK_AGENT_FAMILY")]
    family: Option<String>,

    /// What the host may do, of: exec, files, guestapi, metrics, mounts, port-forward, state. May be
    /// repeated [default: all of them]
    #[arg(
        long,
        value_name = "FEATURE",
        env = "VSOCK_AGENT_FEATURES",
        value_delimiter = ','
    )]
    features: Vec<String>,

    /// User that the host may run commands as, by name or number, with that user's groups only. May
    /// be repeated [default: any]
    #[arg(
        long,
        value_name = "USER",
        env = "VSOCK_AGENT_EXEC_USERS",
        value_delimiter = ','
    )]
    exec_users: Vec<String>,

    /// Command that the host may run, as in "/bin/systemctl status *": * stands for any text in one
    /// argument, ** at the end for any arguments. Of the environment only TERM, COLORTERM, LANG,
    /// LC_* and TZ are taken then. May be repeated [default: any]
    #[arg(long, value_name = "PATTERN")]
    exec_commands: Vec<String>,

    /// Where the host answers questions for instance data: vsock:CID:PORT or unix:PATH, or off for
    /// where it says it does [default: vsock:2:8444 if it answers there at the start, else off]
    #[arg(long, value_name = "URI", env = "VSOCK_AGENT_HOST")]
    host: Option<String>,

    /// Unix socket that programs in the guest ask for instance data, or off. May be repeated
    /// [default: /dev/lxd/sock, or /dev/incus/sock with --family incus]
    #[arg(
        long,
        value_name = "PATH",
        env = "VSOCK_AGENT_GUEST_SOCKET",
        value_delimiter = ','
    )]
    guest_socket: Vec<PathBuf>,

    /// How cloud-init gets the instance data: lxd (from the socket), nocloud (from files) or off
    /// [default: lxd]
    #[arg(long, value_name = "HOW", env = "VSOCK_AGENT_CLOUD_INIT")]
    cloud_init: Option<String>,

    /// Reboot once, early in the boot, when cloud-init's data are new and came too late for it
    #[arg(long, env = "VSOCK_AGENT_CLOUD_INIT_REBOOT")]
    cloud_init_reboot: bool,

    /// Metadata service of another cloud to serve instance data as: aliyun, brightbox, e24cloud,
    /// ec2, openstack, outscale, zstack, or a file of your own, with a slash in its path. May be
    /// repeated. Cloud-init is left alone then, unless --cloud-init says otherwise
    #[arg(
        long,
        value_name = "PRESET",
        env = "VSOCK_AGENT_METADATA",
        value_delimiter = ','
    )]
    metadata: Vec<String>,

    /// Metadata services that know tokens answer nobody without one
    #[arg(long, env = "VSOCK_AGENT_METADATA_TOKEN")]
    metadata_token: bool,

    /// Metadata services answer every user of the guest, and not root alone
    #[arg(long, env = "VSOCK_AGENT_METADATA_ALL_USERS")]
    metadata_all_users: bool,

    /// Longest wait for instance data before the agent says it is ready [default: 10 if a host is
    /// known or found at the start, else 0]
    #[arg(long, value_name = "SECONDS", env = "VSOCK_AGENT_READY_TIMEOUT")]
    ready_timeout: Option<u64>,

    /// Configuration file [default: /etc/vsock-agent/config.toml, if it is there]
    #[arg(long, value_name = "FILE", env = "VSOCK_AGENT_CONFIG")]
    config: Option<PathBuf>,

    /// What to log: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL", env = "VSOCK_AGENT_LOG")]
    log: Option<String>,

    /// Only copy the config share that an LXD or Incus host offers by virtiofs, 9p or CD-ROM to
    /// /run/vsock-agent/share, if there is one
    #[arg(long)]
    fetch_share: bool,

    /// Log more: --log debug
    #[arg(short, long)]
    debug: bool,

    /// Log as usual: --log info
    #[arg(short, long)]
    verbose: bool,

    /// Taken and passed over, as LXD's agent does.
    #[arg(hide = true)]
    ignored: Vec<OsString>,
}

impl Flags {
    /// Whether only the config share is to be copied.
    #[must_use]
    pub fn fetches_share(&self) -> bool {
        self.fetch_share
    }

    /// Arguments that mean nothing.
    #[must_use]
    pub fn ignored(&self) -> &[OsString] {
        &self.ignored
    }

    /// Whether more is to be logged than usual.
    #[must_use]
    pub fn debugs(&self) -> bool {
        self.debug
    }

    fn level(&self) -> Option<&str> {
        let short = if self.debug { Some("debug") } else { None };
        let long = self.log.as_deref();
        long.or(short).or(self.verbose.then_some("info"))
    }
}

/// The configuration file: the flags' names, in TOML.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct FileConfig {
    listen: Vec<String>,
    identity: Option<PathBuf>,
    share: Option<PathBuf>,
    plain: bool,
    allow_cid: Vec<u32>,
    end_commands: bool,
    family: Option<String>,
    features: Option<Vec<String>>,
    exec_users: Option<Vec<String>>,
    exec_commands: Option<Vec<String>>,
    host: Option<String>,
    guest_socket: Vec<PathBuf>,
    cloud_init: Option<String>,
    cloud_init_reboot: bool,
    metadata: Vec<String>,
    metadata_token: bool,
    metadata_all_users: bool,
    ready_timeout: Option<u64>,
    log: Option<String>,
}

/// Why the configuration is not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML, or has a key or a value it should not have.
    #[error("the configuration file {path} is wrong")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Where and how.
        source: toml::de::Error,
    },
    /// An address to listen on makes no sense.
    #[error("cannot listen there")]
    Listen(#[from] ParseListenError),
    /// A context id makes no sense.
    #[error("cannot let that machine in")]
    Cid(#[source] ParseAddressError),
    /// Nobody knows this family.
    #[error("cannot speak to those hosts")]
    Family(#[from] ParseFamilyError),
    /// A pattern for commands makes no sense.
    #[error("cannot tell which commands the host may run")]
    ExecCommands(#[from] ParsePatternError),
    /// What the host may not do is not known.
    #[error("cannot tell what the host may do")]
    Features(#[from] FeaturesError),
    /// The host's address makes no sense.
    #[error("cannot ask the host there")]
    Host(#[source] ParseListenError),
    /// Cloud-init gets its data otherwise.
    #[error("cannot feed cloud-init")]
    CloudInit(#[from] ParseCloudInitError),
    /// A metadata service is not there, or its file is wrong.
    #[error("cannot serve that metadata")]
    Preset(#[from] PresetError),
    /// Nobody knows this level.
    #[error("{0:?} is not a log level: error, warn, info, debug or trace")]
    Log(String),
    /// TLS is wanted and no folder has a certificate.
    #[error(
        "no agent.crt in {searched}: put the identity there, name its folder with --identity, or \
         serve without TLS with --plain"
    )]
    NoIdentity {
        /// The folders that were looked into.
        searched: String,
    },
}

impl Config {
    /// Puts file, environment and flags together. `flags` has the environment in it already.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], for the first thing that is wrong.
    pub fn load(flags: Flags) -> Result<Self, ConfigError> {
        let file = match &flags.config {
            Some(path) => read_file(path)?,
            None if Path::new(DEFAULT_FILE).exists() => read_file(Path::new(DEFAULT_FILE))?,
            None => FileConfig::default(),
        };
        let program = Program::named(env::args_os().next().as_deref());
        let mut config = merge(flags, file, program, &Folders::usual(program))?;
        if config.family == Family::Incus {
            let switches = Features::read(Path::new(features::FILE))?;
            config.features = config.features.and(&switches);
        }
        Ok(config)
    }
}

fn read_file(path: &Path) -> Result<FileConfig, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        source,
    })
}

fn merge(
    flags: Flags,
    file: FileConfig,
    program: Program,
    folders: &Folders,
) -> Result<Config, ConfigError> {
    let log = match flags.level().or(file.log.as_deref()) {
        None => Level::INFO,
        Some(text) => text
            .parse()
            .map_err(|_| ConfigError::Log(text.to_owned()))?,
    };
    let listen = first_given(flags.listen, file.listen);
    let mut listen: Vec<ListenAddress> = listen
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    if listen.is_empty() {
        listen.push(ListenAddress::Vsock(VsockAddress {
            cid: Cid::ANY,
            port: DEFAULT_PORT,
        }));
    }
    let cids: Vec<Cid> = flags
        .allow_cid
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()
        .map_err(ConfigError::Cid)?;
    let mut allowed_cids = first_given(cids, file.allow_cid.into_iter().map(Cid).collect());
    if allowed_cids.is_empty() {
        allowed_cids.push(Cid::HOST);
    }
    let security = match flags.plain || file.plain {
        true => Security::Plain,
        false => Security::Tls(folders.identity(flags.identity.or(file.identity))?),
    };
    let identity = match &security {
        Security::Tls(folder) => Some(folder.as_path()),
        Security::Plain => None,
    };
    // LXD's and Incus's hosts put a share there, and answer elsewhere. Where the agent does not listen
    // on AF_VSOCK, it asks nobody there either.
    let looks_for_host = program == Program::Own
        && flags.share.is_none()
        && file.share.is_none()
        && identity != Some(Path::new(config_share::FETCHED))
        && listen
            .iter()
            .any(|address| matches!(address, ListenAddress::Vsock(_)));
    let share = folders.share(flags.share.or(file.share), program, identity);
    let family = match flags.family.or(file.family) {
        None => program.family(),
        Some(text) => text.parse()?,
    };
    let features = match given(flags.features, file.features) {
        None => Features::all(),
        Some(names) => Features::only(parsed::<Feature>(&names)?),
    };
    let commands = given(flags.exec_commands, file.exec_commands);
    let exec_policy = ExecPolicy {
        users: given(flags.exec_users, file.exec_users),
        commands: commands
            .map(|patterns| parsed::<CommandPattern>(&patterns))
            .transpose()?,
    };
    let presets: Vec<Arc<Preset>> = first_given(flags.metadata, file.metadata)
        .iter()
        .map(|word| Preset::find(word).map(Arc::new))
        .collect::<Result<_, _>>()?;
    let (host, usual_host) = match flags.host.or(file.host).as_deref() {
        Some(guest::OFF) => (None, None),
        Some(text) => (Some(text.parse().map_err(ConfigError::Host)?), None),
        None => (None, looks_for_host.then_some(guest::USUAL_HOST)),
    };
    let guest = GuestConfig {
        host,
        usual_host,
        sockets: guest::sockets(first_given(flags.guest_socket, file.guest_socket), family),
        cloud_init: match flags.cloud_init.or(file.cloud_init) {
            // It finds the service by itself, and would take the socket first if it saw both.
            None if !presets.is_empty() => CloudInit::Off,
            None => CloudInit::default(),
            Some(text) => text.parse()?,
        },
        cloud_init_reboot: flags.cloud_init_reboot || file.cloud_init_reboot,
        ready_timeout: flags
            .ready_timeout
            .or(file.ready_timeout)
            .map(Duration::from_secs),
        presets: PresetConfig {
            presets,
            only_with_token: flags.metadata_token || file.metadata_token,
            for_all_users: flags.metadata_all_users || file.metadata_all_users,
        },
    };
    let end_commands = flags.end_commands || file.end_commands;
    Ok(Config {
        listen,
        security,
        allowed_cids,
        end_commands,
        family,
        features,
        exec_policy,
        guest,
        log,
        root: PathBuf::from("/"),
        share: share.map(ConfigShare::new),
        status_ports: status_port::KNOWN.map(PathBuf::from).to_vec(),
    })
}

/// A list of which the file can say that it is empty.
fn given(flags: Vec<String>, file: Option<Vec<String>>) -> Option<Vec<String>> {
    if flags.is_empty() { file } else { Some(flags) }
}

fn parsed<T: FromStr>(texts: &[String]) -> Result<Vec<T>, T::Err> {
    texts.iter().map(|text| text.parse()).collect()
}

fn first_given<T>(first: Vec<T>, second: Vec<T>) -> Vec<T> {
    if first.is_empty() { second } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> FileConfig {
        toml::from_str(text).unwrap()
    }

    fn merge(flags: Flags, file: FileConfig) -> Result<Config, ConfigError> {
        super::merge(flags, file, Program::Own, &Folders::usual(Program::Own))
    }

    fn parsed(arguments: &[&str]) -> Flags {
        let program = std::iter::once("vsock-agent");
        Flags::try_parse_from(program.chain(arguments.iter().copied())).unwrap()
    }

    fn plain_flags() -> Flags {
        Flags {
            plain: true,
            ..Flags::default()
        }
    }

    #[test]
    fn nothing_said_means_the_lxd_port_and_the_host_only() {
        let config = merge(plain_flags(), FileConfig::default()).unwrap();
        assert_eq!(config.listen, ["vsock:any:8443".parse().unwrap()]);
        assert_eq!(config.allowed_cids, [Cid::HOST]);
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let flags = Flags {
            listen: vec!["unix:/a".to_owned()],
            ..plain_flags()
        };
        let config = merge(flags, file(r#"listen = ["unix:/b"]"#)).unwrap();
        assert_eq!(config.listen, ["unix:/a".parse().unwrap()]);
    }

    #[test]
    fn the_family_is_lxd_unless_something_else_is_said() {
        let family = |flags, file| merge(flags, file).map(|config| config.family);
        let said = |text: &str| Flags {
            family: Some(text.to_owned()),
            ..plain_flags()
        };
        assert_eq!(family(plain_flags(), file("")).unwrap(), Family::Lxd);
        let incus = || file("family = \"incus\"");
        assert_eq!(family(plain_flags(), incus()).unwrap(), Family::Incus);
        assert_eq!(family(said("lxd"), incus()).unwrap(), Family::Lxd);
        let error = family(said("docker"), incus()).unwrap_err();
        assert!(matches!(error, ConfigError::Family(_)), "{error}");
    }

    #[test]
    fn a_key_nobody_knows_is_refused() {
        toml::from_str::<FileConfig>("listn = []").unwrap_err();
    }

    #[test]
    fn what_the_host_may_do_is_said_whoever_the_host_is() {
        let text = "features = [\"exec\", \"state\"]\nexec-users = [\"ann\"]\n\
                    exec-commands = [\"/bin/df **\"]\n";
        let config = merge(plain_flags(), file(text)).unwrap();
        let expected = Features::only([Feature::Exec, Feature::State]);
        assert_eq!(config.features, expected);
        assert_eq!(config.exec_policy.users, Some(vec!["ann".to_owned()]));
        assert_eq!(config.exec_policy.commands.unwrap().len(), 1);

        let nothing = "features = []\nexec-users = []\nexec-commands = []\n";
        let config = merge(plain_flags(), file(nothing)).unwrap();
        assert_eq!(config.features, Features::only([]));
        assert_eq!(config.exec_policy.users, Some(Vec::new()));
        assert_eq!(config.exec_policy.commands, Some(Vec::new()));

        let config = merge(plain_flags(), file("")).unwrap();
        assert_eq!(config.features, Features::all());
        assert_eq!(config.exec_policy, ExecPolicy::default());
        for text in ["features = [\"exce\"]", "exec-commands = [\"df\"]"] {
            merge(plain_flags(), file(text)).unwrap_err();
        }
    }

    #[test]
    fn a_level_nobody_knows_is_refused_by_name() {
        let flags = Flags {
            log: Some("loud".to_owned()),
            ..plain_flags()
        };
        let error = merge(flags, FileConfig::default()).unwrap_err();
        assert!(error.to_string().contains("loud"), "{error}");
    }

    #[test]
    fn the_name_decides_the_family_unless_it_is_said() {
        let family = |flags| {
            let program = Program::StandIn(Family::Incus);
            let merged = super::merge(flags, file(""), program, &Folders::usual(Program::Own));
            merged.unwrap().family
        };
        assert_eq!(family(plain_flags()), Family::Incus);
        let said = Flags {
            family: Some("lxd".to_owned()),
            ..plain_flags()
        };
        assert_eq!(family(said), Family::Lxd);
    }

    #[test]
    fn our_own_host_is_looked_for_by_an_agent_on_af_vsock_that_knows_of_no_other() {
        let looked_for = |flags: Flags, text: &str, program| {
            let config =
                super::merge(flags, file(text), program, &Folders::usual(Program::Own)).unwrap();
            config.guest.usual_host.map(|address| address.to_string())
        };
        let own = |text: &str| looked_for(plain_flags(), text, Program::Own);
        let usual = Some("vsock:2:8444".to_owned());
        assert_eq!(own(""), usual);
        assert_eq!(own(r#"listen = ["unix:/a", "vsock:any:1024"]"#), usual);
        for text in [
            r#"listen = ["unix:/a"]"#,
            r#"host = "unix:/a""#,
            r#"host = "off""#,
            r#"share = "/a""#,
        ] {
            assert_eq!(own(text), None, "{text}");
        }
        let stand_in = Program::StandIn(Family::Lxd);
        assert_eq!(looked_for(plain_flags(), "", stand_in), None);
        let identity = |folder: &str| Flags {
            identity: Some(folder.into()),
            ..Flags::default()
        };
        let fetched = identity(config_share::FETCHED);
        assert_eq!(looked_for(fetched, "", Program::Own), None);
        assert_eq!(looked_for(identity("/a"), "", Program::Own), usual);
    }

    #[test]
    fn the_host_may_be_named_or_switched_off() {
        let host = |text: &str| merge(plain_flags(), file(text)).map(|config| config.guest.host);
        let named = Some("vsock:2:1".parse().unwrap());
        assert_eq!(host(r#"host = "vsock:2:1""#).unwrap(), named);
        assert_eq!(host(r#"host = "off""#).unwrap(), None);
        let error = host(r#"host = "none""#).unwrap_err();
        assert!(matches!(error, ConfigError::Host(_)), "{error}");
    }

    #[test]
    fn the_flags_of_lxds_and_incuss_agents_are_understood() {
        for (arguments, level) in [
            (vec!["-d"], Level::DEBUG),
            (vec!["--debug"], Level::DEBUG),
            (vec!["-v"], Level::INFO),
            (vec!["--verbose"], Level::INFO),
            (vec!["-d", "-v"], Level::DEBUG),
            (vec!["-d", "--log", "error"], Level::ERROR),
            (vec![], Level::WARN),
        ] {
            let flags = parsed(&[&["-s", "/secrets"], arguments.as_slice()].concat());
            let config = merge(flags, file("log = \"warn\"")).unwrap();
            assert_eq!(config.log, level, "{arguments:?}");
            assert_eq!(config.security, Security::Tls("/secrets".into()));
            assert_eq!(config.share, Some(ConfigShare::new("/secrets".into())));
        }
        let flags = parsed(&["--secrets-location", "/a", "more", "-d", "words"]);
        assert_eq!(flags.ignored(), ["more", "words"]);
        assert!(flags.debug);
    }
}
