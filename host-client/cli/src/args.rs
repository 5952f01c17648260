//! The command line, as clap reads it. Its help is the documentation.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use vsock_agent_client::{
    SessionOptions,
    protocol::{address::DEFAULT_HOST_PORT, exec, sftp::PERMISSION_BITS},
};

const VM_HELP: &str = "\
VM is a name from the configuration (see `agent-cli vm`) or an endpoint:
  vsock:CID[:PORT]     a virtual machine, by its context id
  unix:PATH            a Unix socket of an agent
  hybrid:PATH[:PORT]   the vsock socket of Firecracker, Cloud Hypervisor or vhost-device-vsock
The port is 8443 if it is left out.

Exit status: that of the command in the guest for `exec` and `shell`, else 0; 125 if agent-cli
itself failed, 1 if that was so for some of several files.

Files: ~/.config/agent-cli/config.toml (or the file that AGENT_CLI_CONFIG names),
~/.config/agent-cli/identity (keys and certificates)";

const SFTP_HELP: &str = "\
Commands and their options are those of OpenSSH's sftp(1); `help` lists them. So is the syntax of a
line: 'a b', \"a b\" and a\\ b are one word, * ? [a-z] match names unless they are quoted, # starts a
comment. $'a\\xff\\n' is a word with bytes that cannot be typed; this is also how such names are
completed. Wildcards match bytes. A copy has its name only when it is whole, and always keeps mode
and times. Times are shown in UTC.

Without a terminal, commands come from stdin as from a batch. A batch shows each line, and ends with
status 125 at the first one that fails unless it starts with -.

Files: $XDG_STATE_HOME/vsock-agent/sftp-history, or ~/.local/state/vsock-agent/sftp-history; a line
that starts with a blank is not kept";

const CONFIG_HELP: &str = "\
Keys:
  cloud-init.user-data, cloud-init.vendor-data, cloud-init.network-config
                          cloud-init's data; user.* of these names count where cloud-init.* is not set
  user.meta-data          YAML that is added to the meta-data
  user.*, cloud-init.*    anything, for programs in the guest
  cloud-init.ssh-keys.NAME
                          USER:KEY, put into the user-data and vendor-data; the key may be gh:NAME
  devices.NAME.KEY        a device; each needs a type, such as nic with hwaddr
  hostname                instead of the name of the virtual machine
  instance-id             instead of the one that is drawn anew when cloud-init is to start over: when
                          one of its data, its SSH keys or a network interface's name changes
  security.devlxd         false: the guest may not ask at all

A value is checked first, and a wrong one changes nothing. `agent-cli serve` hands the data out.";

/// Run commands and move files in virtual machines, from their host
#[derive(Debug, Parser)]
#[command(name = "agent-cli", version, after_help = VM_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Global {
    /// Directory with client.crt, client.key and the guest's agent.crt (there or in VM/)
    #[arg(long, global = true, value_name = "DIR", env = "AGENT_CLI_IDENTITY")]
    pub(crate) identity: Option<PathBuf>,
    /// No TLS, and no identity: whoever can open the socket is in
    #[arg(long, global = true)]
    pub(crate) plain: bool,
    /// How long to try to connect, while the virtual machine boots
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) connect_timeout: u32,
    /// How long an agent may be silent when it owes something, before it is given up: an answer, a
    /// sign of life while a command runs, a reply about a file [default: 30, 45 and 300]
    #[arg(long, global = true, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) silence_timeout: Option<u32>,
    /// Say what is going on, on stderr; twice or three times for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a guest
    Exec(ExecArgs),
    /// Open a login shell in a guest
    Shell(ShellArgs),
    /// Work with files of a guest: a prompt, or raw SFTP for other programs
    Sftp(SftpArgs),
    /// Copy files into a guest
    Push(PushArgs),
    /// Copy files out of a guest
    Pull(PullArgs),
    /// List files of a guest, or the configured virtual machines
    Ls(LsArgs),
    /// Print files of a guest
    Cat(CatArgs),
    /// Remove files of a guest; never what a symbolic link leads to
    Rm(RmArgs),
    /// Create directories in a guest
    Mkdir(MkdirArgs),
    /// Show what a guest knows of its files
    Stat(StatArgs),
    /// Edit a file of a guest with $VISUAL, $EDITOR or vi
    Edit(EditArgs),
    /// Show what an agent is and can do
    Info(InfoArgs),
    /// Make keys and certificates
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Names for virtual machines, in the configuration
    #[command(subcommand)]
    Vm(VmCommand),
    /// What guests are told of themselves: data for cloud-init and for their programs
    #[command(subcommand, after_help = CONFIG_HELP)]
    Config(ConfigCommand),
    /// Answer guests that ask for their data; one process for all of them
    Serve(ServeArgs),
    /// Print what QEMU has to be told so that cloud-init finds its data in a guest
    QemuArgs(QemuArgsArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExecArgs {
    /// Give the command a terminal even if this is none
    #[arg(short = 't', long, overrides_with = "no_tty")]
    pub(crate) tty: bool,
    /// Give the command pipes even if this is a terminal
    #[arg(short = 'T', long, overrides_with = "tty")]
    pub(crate) no_tty: bool,
    /// Give the command no input, and no terminal unless -t asks for one
    #[arg(short = 'n', long)]
    pub(crate) no_stdin: bool,
    /// Set a variable in the command's environment
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub(crate) env: Vec<(String, String)>,
    /// End the command after this time, with exit status 124; 0 is no limit
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u32>,
    /// Wait for the end of the output as long as anything holds it, as LXD does
    #[arg(long)]
    pub(crate) wait_for_eof: bool,
    /// What becomes of the command when agent-cli is gone: it ends with all it started, it is hung up as
    /// by ssh (what ignores SIGHUP goes on), or it is kept
    #[arg(long, value_name = "WHAT", value_enum, default_value = "end")]
    pub(crate) on_disconnect: OnDisconnect,
    /// Directory to start in; the home directory if left out
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// User to run as, by name or number; root if left out
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Group to run as, by name or number; the user's own if left out
    #[arg(short, long)]
    pub(crate) group: Option<String>,
    /// Name or endpoint of the virtual machine
    pub(crate) vm: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

/// What becomes of a command when its client is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnDisconnect {
    End,
    Hangup,
    Keep,
}

impl From<OnDisconnect> for exec::OnDisconnect {
    fn from(what: OnDisconnect) -> Self {
        match what {
            OnDisconnect::End => Self::End,
            OnDisconnect::Hangup => Self::Hangup,
            OnDisconnect::Keep => Self::Keep,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ShellArgs {
    /// What becomes of the shell when agent-cli is gone, as for exec
    #[arg(long, value_name = "WHAT", value_enum, default_value = "end")]
    pub(crate) on_disconnect: OnDisconnect,
    /// User to be; root if left out
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Use pipes in place of a terminal
    #[arg(short = 'T', long)]
    pub(crate) no_tty: bool,
    /// Name or endpoint of the virtual machine
    pub(crate) vm: String,
}

/// Whose rights hold for files.
#[derive(Debug, ClapArgs)]
pub(crate) struct SessionArgs {
    /// Whose rights hold in the guest, by name or number; the agent's own if left out
    #[arg(short, long)]
    pub(crate) user: Option<String>,
}

impl SessionArgs {
    pub(crate) fn options(&self) -> SessionOptions {
        SessionOptions {
            user: self.user.clone(),
            ..SessionOptions::default()
        }
    }
}

#[derive(Debug, ClapArgs)]
#[command(after_help = SFTP_HELP)]
pub(crate) struct SftpArgs {
    /// Speak raw SFTP on stdin and stdout: sftp -D "agent-cli sftp --stdio VM"
    #[arg(long, conflicts_with_all = ["batch", "user", "root", "read_only"])]
    pub(crate) stdio: bool,
    /// Read commands from a file ("-" is stdin), and end at the first that fails; a command with
    /// "-" before it may fail, one with "@" is not shown
    #[arg(short, long, value_name = "FILE")]
    pub(crate) batch: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// A directory of the guest that is "/" for this session: nothing outside can be reached
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<String>,
    /// Refuse everything that would change something in the guest
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Name or endpoint of the virtual machine
    pub(crate) vm: String,
}

impl SftpArgs {
    pub(crate) fn options(&self) -> SessionOptions {
        SessionOptions {
            root: self.root.clone(),
            read_only: self.read_only,
            ..self.session.options()
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PushArgs {
    #[command(flatten)]
    pub(crate) copy: CopyArgs,
    /// What to copy ("-" alone is stdin), then where to
    #[arg(required = true, num_args = 2.., value_names = ["SRC", "VM:/DST"])]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PullArgs {
    #[command(flatten)]
    pub(crate) copy: CopyArgs,
    /// What to copy, then where to ("-" is stdout)
    #[arg(required = true, num_args = 2.., value_names = ["VM:/SRC", "DST"])]
    pub(crate) paths: Vec<OsString>,
}

/// How files are copied. Modes and times always are, and a file has its name only when it is whole.
#[derive(Debug, ClapArgs)]
pub(crate) struct CopyArgs {
    /// Directories too, with everything in them; symbolic links stay links
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// Continue what broke off, after comparing it, and skip what is complete: the same size and time,
    /// and the same content by its hash. When interrupted, keep what there is so far. A tree that is
    /// copied again needs -T
    #[arg(long)]
    pub(crate) resume: bool,
    /// The source becomes the destination, also if that is a directory, as with `cp -T`: a copy that is
    /// tried again comes to the same place
    #[arg(short = 'T', long)]
    pub(crate) no_target_directory: bool,
    /// Wait until each file is on its disk; the default for a single file
    #[arg(long, overrides_with = "no_fsync")]
    pub(crate) fsync: bool,
    /// Do not wait until files are on their disk; the default with -r
    #[arg(long, overrides_with = "fsync")]
    pub(crate) no_fsync: bool,
    /// Copy owners and groups, as numbers
    #[arg(short, long)]
    pub(crate) owner: bool,
    /// Copy setuid, setgid and sticky bits
    #[arg(long)]
    pub(crate) preserve_special: bool,
    /// Give files this mode, in octal, whatever their sources have
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    pub(crate) mode: Option<u32>,
    /// Give files the modes of their sources also where they replace others, which else keep theirs,
    /// and whatever the umask
    #[arg(short, long)]
    pub(crate) preserve: bool,
    /// Write to the files that are there, instead of replacing them when the copy is complete: what
    /// breaks off leaves them incomplete
    #[arg(long, conflicts_with = "resume")]
    pub(crate) in_place: bool,
    /// Replace a symbolic link that has the name of a file, instead of the file that it leads to
    #[arg(long)]
    pub(crate) no_dereference: bool,
    /// Stop after so many files and directories
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_entries: Option<u64>,
    /// Stop after so many bytes
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_bytes: Option<u64>,
    /// Whose rights hold in the guest, by name or number; the agent's own if left out
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Show neither progress nor what was skipped; what failed is told all the same
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print what happens, one JSON object on each line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(disable_help_flag = true)]
pub(crate) struct LsArgs {
    /// Show modes, owners, sizes, times (in UTC) and where links point
    #[arg(short)]
    pub(crate) long: bool,
    /// Show names that start with a dot too
    #[arg(short)]
    pub(crate) all: bool,
    /// Show directories themselves
    #[arg(short)]
    pub(crate) directory: bool,
    /// Show sizes in units of 1024
    #[arg(short = 'h')]
    pub(crate) human: bool,
    /// As -l, with owners as numbers
    #[arg(short)]
    pub(crate) numeric: bool,
    /// Go down into directories, but not into links to some
    #[arg(short = 'R')]
    pub(crate) recursive: bool,
    /// Backwards
    #[arg(short)]
    pub(crate) reverse: bool,
    /// The largest first
    #[arg(short = 'S')]
    pub(crate) by_size: bool,
    /// The newest first
    #[arg(short = 't', overrides_with = "by_size")]
    pub(crate) by_time: bool,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    pub(crate) help: Option<bool>,
    /// What to list; nothing for the configured virtual machines
    #[arg(value_name = "VM:/PATH")]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CatArgs {
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// Files to print, one after the other
    #[arg(required = true, value_name = "VM:/PATH")]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RmArgs {
    /// Directories too, with everything in them
    #[arg(short, long, short_alias = 'R')]
    pub(crate) recursive: bool,
    /// It is no failure if there is nothing to remove
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// What to remove
    #[arg(required = true, value_name = "VM:/PATH")]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct MkdirArgs {
    /// What is above them too; it is no failure if they are there
    #[arg(short, long)]
    pub(crate) parents: bool,
    /// Their mode, in octal, whatever the umask; not of what is above them
    #[arg(short, long, value_parser = parse_mode)]
    pub(crate) mode: Option<u32>,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// Directories to create
    #[arg(required = true, value_name = "VM:/PATH")]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StatArgs {
    /// What links lead to, in place of the links
    #[arg(short = 'L', long)]
    pub(crate) dereference: bool,
    /// The file system with its free room, in place of the file
    #[arg(short, long, conflicts_with = "dereference")]
    pub(crate) file_system: bool,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// What to show
    #[arg(required = true, value_name = "VM:/PATH")]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct EditArgs {
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// File to edit; it need not be there yet
    #[arg(value_name = "VM:/PATH")]
    pub(crate) path: OsString,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct InfoArgs {
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
    /// Name or endpoint of the virtual machine
    pub(crate) vm: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IdentityCommand {
    /// Make the host's key pair, if there is none yet, and a guest's certificate set
    Init(InitArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct InitArgs {
    /// Where to keep them [default: the directory of --identity]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Replace the guest's set if there is one; the host's key pair is always kept
    #[arg(long)]
    pub(crate) force: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
    /// Name or endpoint of the virtual machine
    pub(crate) vm: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Give a virtual machine a name
    Add(AddArgs),
    /// Forget a name, and what its guest is told of itself
    #[command(visible_alias = "rm")]
    Remove {
        /// The name
        name: String,
    },
    /// List the names
    #[command(visible_alias = "ls")]
    List {
        /// How to print it
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AddArgs {
    /// The name
    pub(crate) name: String,
    /// Where its agent is; see the end of `agent-cli --help`
    pub(crate) endpoint: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Set keys; an empty value unsets
    Set {
        /// Name of the virtual machine
        vm: String,
        /// KEY VALUE, with - for a value from stdin, or KEY=VALUE once or more
        #[arg(
            required = true,
            allow_hyphen_values = true,
            value_name = "KEY [VALUE|-]"
        )]
        words: Vec<String>,
    },
    /// Print the value of a key
    Get {
        /// Name of the virtual machine
        vm: String,
        /// The key
        key: String,
    },
    /// Print all of it, and what is known of the guest
    Show {
        /// Name of the virtual machine
        vm: String,
        /// How to print it
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Remove keys; devices.NAME removes a whole device
    Unset {
        /// Name of the virtual machine
        vm: String,
        /// The keys
        #[arg(required = true)]
        keys: Vec<String>,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct QemuArgsArgs {
    /// Name of the virtual machine
    pub(crate) vm: String,
    /// What cloud-init is to take for its source: lxd, nocloud, ec2, brightbox, e24cloud, outscale,
    /// zstack, aliyun, openstack, or the file of a preset, with a slash in its path
    #[arg(long, value_name = "NAME")]
    pub(crate) datasource: String,
    /// Print a list in JSON instead of one argument on each line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ServeArgs {
    /// Port to listen on: on AF_VSOCK if a virtual machine is reached by it, and as `SOCKET_PORT`
    /// beside each Unix socket
    #[arg(long, default_value_t = DEFAULT_HOST_PORT)]
    pub(crate) port: u32,
    /// Print what a running `serve` knows of the guests, and leave
    #[arg(long)]
    pub(crate) status: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Human,
    /// For programs
    Json,
}

/// How results are printed, with a short way to say it.
#[derive(Debug, ClapArgs)]
pub(crate) struct FormatArgs {
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The same as --format json
    #[arg(long)]
    json: bool,
}

impl FormatArgs {
    pub(crate) const fn value(&self) -> Format {
        match self.json {
            true => Format::Json,
            false => self.format,
        }
    }
}

fn parse_mode(text: &str) -> Result<u32, String> {
    let is_octal = text.bytes().all(|byte| byte.is_ascii_digit());
    let mode = is_octal
        .then(|| u32::from_str_radix(text, 8).ok())
        .flatten();
    mode.filter(|mode| *mode <= PERMISSION_BITS)
        .ok_or_else(|| "write it in octal, such as 0755".to_owned())
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn exec(arguments: &[&str]) -> ExecArgs {
        let all = ["agent-cli", "exec"].iter().chain(arguments);
        match Args::try_parse_from(all).unwrap().command {
            Command::Exec(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn options_behind_the_virtual_machine_belong_to_the_command() {
        for arguments in [
            &["-T", "demo", "ls", "-la", "--", "-t"][..],
            &["-T", "demo", "--", "ls", "-la", "--", "-t"],
        ] {
            let args = exec(arguments);
            assert_eq!(args.vm, "demo");
            assert_eq!(args.command, ["ls", "-la", "--", "-t"]);
            assert!(args.no_tty && !args.tty);
        }
    }

    #[test]
    fn a_command_ends_with_its_client_unless_said_otherwise() {
        let what = |arguments: &[&str]| exec(arguments).on_disconnect;
        assert_eq!(what(&["demo", "ls"]), OnDisconnect::End);
        assert_eq!(
            what(&["--on-disconnect=keep", "demo", "ls"]),
            OnDisconnect::Keep
        );
        let hangup = ["--on-disconnect", "hangup", "demo", "ls"];
        assert_eq!(what(&hangup), OnDisconnect::Hangup);
    }

    #[test]
    fn variables_need_a_name_and_a_value() {
        let args = exec(&["--env", "A=b=c", "-e", "B=", "demo", "env"]);
        assert_eq!(args.env[0], ("A".to_owned(), "b=c".to_owned()));
        assert_eq!(args.env[1], ("B".to_owned(), String::new()));
        let wrong = ["agent-cli", "exec", "--env", "=x", "demo", "env"];
        Args::try_parse_from(wrong).unwrap_err();
    }

    #[test]
    fn raw_sftp_has_no_options_that_it_could_not_confirm() {
        let parse = |words: &[&str]| Args::try_parse_from([&["agent-cli", "sftp"], words].concat());
        parse(&["--stdio", "demo"]).unwrap();
        parse(&["--stdio", "--read-only", "demo"]).unwrap_err();
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(parse_mode("0755"), Ok(0o755));
        for wrong in ["8", "10000", "+7", "", "u+x"] {
            parse_mode(wrong).unwrap_err();
        }
    }

    #[test]
    fn a_command_is_needed() {
        Args::try_parse_from(["agent-cli", "exec", "demo"]).unwrap_err();
    }
}
