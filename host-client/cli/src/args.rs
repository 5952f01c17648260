//! The command line. Its doc comments are the help texts.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Args as ClapArgs, Parser, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use vsock_agent_client::{
    SessionOptions,
    protocol::{address::DEFAULT_HOST_PORT, exec::OnDisconnect, sftp::PERMISSION_BITS},
};

use crate::mux::Persist;

const VM_HELP: &str = "\
VM is a name from the configuration (see `agent-cli vm`) or an endpoint:
  vsock:CID[:PORT]     a virtual machine, by its context id
  unix:PATH            a Unix socket of an agent
  hybrid:PATH[:PORT]   the vsock socket of Firecracker, Cloud Hypervisor or vhost-device-vsock
The default port is 8443.

Exit status: for `exec` and `shell` that of the command in the guest; otherwise 0, 1 if some of
several files failed, 125 if agent-cli itself failed.

Files: ~/.config/agent-cli/config.toml (or the file that AGENT_CLI_CONFIG names),
~/.config/agent-cli/identity (keys and certificates)";

const SFTP_HELP: &str = "\
Commands and their options are those of OpenSSH's sftp(1); `help` lists them. So is the syntax of a
line: 'a b', \"a b\" and a\\ b are one word, * ? [a-z] match names unless they are quoted, # starts a
comment. $'a\\xff\\n' is a word with bytes that cannot be typed; completion writes such names in this
form. Wildcards match bytes. A copy gets its name when it is complete, and always keeps mode and times.
Times are shown in UTC.

Without a terminal, commands are read from stdin as a batch. A batch prints each line, and ends with
status 125 at the first line that fails, unless that starts with -.

Files: $XDG_STATE_HOME/vsock-agent/sftp-history, or ~/.local/state/vsock-agent/sftp-history; a line
that starts with a space is not saved";

const CONFIG_HELP: &str = "\
Keys:
  cloud-init.user-data, cloud-init.vendor-data, cloud-init.network-config
                          cloud-init's data; user.* of the same names are used where cloud-init.* is not set
  user.meta-data          YAML, added to the meta-data
  user.*, cloud-init.*    any text, for programs in the guest
  cloud-init.ssh-keys.NAME
                          USER:KEY, added to the user-data and vendor-data; the key may be gh:NAME
  devices.NAME.KEY        a device; a type is required, such as nic with hwaddr
  hostname                the name of the virtual machine unless set
  instance-id             generated unless set; a new one, with which cloud-init runs again, when
                          cloud-init's data, SSH keys or the name of a network interface change
  security.devlxd         false: the guest gets no instance data

Values are checked; an invalid one changes nothing. `agent-cli serve` gives the data to the guests.";

const MUX_HELP: &str = "\
While the process runs, `exec`, `shell` and `info` use the connections that it keeps: without connecting
and without a TLS handshake. Everything else about them is the same. If the process cannot be used, or
cannot connect, they connect themselves. Copies of files always do, and `--http1`.

Each user has one process. It reads the identity for each call: a connection is used only with the
identity that it was made with. It ends when it was not used for some time, when it is stopped, and
when its socket is removed; calls that are under way go on.

With persist = \"10m\" in the configuration file, before any [vms.NAME], the first call starts it.

Files: $XDG_RUNTIME_DIR/agent-cli/mux.sock";

/// Run commands and move files in virtual machines, from their host
#[derive(Debug, Parser)]
#[command(name = "agent-cli", version, after_help = VM_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of all commands.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Global {
    /// Directory with client.crt, client.key and the guest's agent.crt (there or in VM/)
    #[arg(long, global = true, value_name = "DIR", env = "AGENT_CLI_IDENTITY")]
    pub(crate) identity: Option<PathBuf>,
    /// Use no TLS and no identity: every user who can open the socket has access
    #[arg(long, global = true)]
    pub(crate) plain: bool,
    /// How long to try to connect, for example while the virtual machine boots
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 30)]
    pub(crate) connect_timeout: u32,
    /// How long the agent may send nothing before it is considered lost [default: 30 for a reply, 45
    /// while a command runs, 300 for a reply about a file]
    #[arg(long, global = true, value_name = "SECONDS", hide_short_help = true)]
    pub(crate) silence_timeout: Option<u32>,
    /// Speak LXD's protocol over HTTP/1.1 also to an agent that speaks HTTP/2
    #[arg(long, global = true, hide_short_help = true)]
    pub(crate) http1: bool,
    /// Log to stderr; repeat for more detail
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a guest
    Exec(ExecArgs),
    /// Open a login shell in a guest
    Shell(ShellArgs),
    /// Manage files of a guest: a prompt like sftp's, or raw SFTP for other programs
    Sftp(SftpArgs),
    /// Copy files into a guest
    Push(PushArgs),
    /// Copy files out of a guest
    Pull(PullArgs),
    /// List files of a guest, or the configured virtual machines
    Ls(LsArgs),
    /// Print files of a guest
    Cat(CatArgs),
    /// Remove files of a guest; symbolic links are not followed
    Rm(RmArgs),
    /// Create directories in a guest
    Mkdir(MkdirArgs),
    /// Show the attributes of files of a guest
    Stat(StatArgs),
    /// Edit a file of a guest with $VISUAL, $EDITOR or vi
    Edit(EditArgs),
    /// Show an agent's version and API extensions
    Info(InfoArgs),
    /// Create keys and certificates
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Manage the names of virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// Manage instance data: what cloud-init and other programs in a guest read
    #[command(subcommand, after_help = CONFIG_HELP)]
    Config(ConfigCommand),
    /// Give instance data to the guests of this host
    Serve(ServeArgs),
    /// Keep connections for later calls, in a process in the background
    #[command(subcommand, after_help = MUX_HELP)]
    Mux(MuxCommand),
    /// Print the QEMU arguments by which cloud-init finds its data in a guest
    QemuArgs(QemuArgsArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ExecArgs {
    /// Allocate a terminal even if stdin or stdout is not one
    #[arg(short = 't', long, overrides_with = "no_tty")]
    pub(crate) tty: bool,
    /// Use pipes even if stdin and stdout are a terminal
    #[arg(short = 'T', long, overrides_with = "tty")]
    pub(crate) no_tty: bool,
    /// Give the command no input, and no terminal unless -t is given
    #[arg(short = 'n', long)]
    pub(crate) no_stdin: bool,
    /// Set a variable in the command's environment
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub(crate) env: Vec<(String, String)>,
    /// End the command after this time, with exit status 124; 0 is no limit
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u32>,
    /// Wait until the output is closed by every process that has it open, as LXD does
    #[arg(long)]
    pub(crate) wait_for_eof: bool,
    /// When the connection is lost: end the command and all its processes, hang up as ssh does
    /// (processes that ignore SIGHUP continue), or keep it running
    #[arg(long, value_name = "WHAT", value_parser = on_disconnect(), default_value = "end")]
    pub(crate) on_disconnect: OnDisconnect,
    /// Working directory [default: the user's home]
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// User to run as, by name or number [default: root]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Group to run as, by name or number [default: the user's]
    #[arg(short, long)]
    pub(crate) group: Option<String>,
    /// Name or endpoint of the virtual machine
    pub(crate) vm: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ShellArgs {
    /// When the connection is lost, as for exec
    #[arg(long, value_name = "WHAT", value_parser = on_disconnect(), default_value = "end")]
    pub(crate) on_disconnect: OnDisconnect,
    /// User to log in as [default: root]
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Use pipes instead of a terminal
    #[arg(short = 'T', long)]
    pub(crate) no_tty: bool,
    /// Name or endpoint of the virtual machine
    pub(crate) vm: String,
}

/// The user of an SFTP session.
#[derive(Debug, ClapArgs)]
pub(crate) struct SessionArgs {
    /// Act as this user in the guest, by name or number [default: the agent's]
    #[arg(short, long)]
    user: Option<String>,
}

impl SessionArgs {
    pub(crate) fn options(&self) -> SessionOptions {
        let mut options = SessionOptions::default();
        options.user.clone_from(&self.user);
        options
    }
}

#[derive(Debug, ClapArgs)]
#[command(after_help = SFTP_HELP)]
pub(crate) struct SftpArgs {
    /// Speak raw SFTP on stdin and stdout: sftp -D "agent-cli sftp --stdio VM"
    #[arg(long, conflicts_with_all = ["batch", "user", "root", "read_only"])]
    pub(crate) stdio: bool,
    /// Read commands from a file ("-" is stdin) and stop at the first that fails; a command after "-"
    /// may fail, one after "@" is not printed
    #[arg(short, long, value_name = "FILE")]
    pub(crate) batch: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// Use this directory of the guest as "/"; paths outside of it are not accessible
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<String>,
    /// Refuse all operations that change the guest
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Name or endpoint of the virtual machine
    pub(crate) vm: String,
}

impl SftpArgs {
    pub(crate) fn options(&self) -> SessionOptions {
        let mut options = self.session.options().with_read_only(self.read_only);
        options.root.clone_from(&self.root);
        options
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PushArgs {
    #[command(flatten)]
    pub(crate) copy: CopyArgs,
    /// Sources ("-" alone is stdin), then the destination
    #[arg(required = true, num_args = 2.., value_names = ["SRC", "VM:/DST"])]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct PullArgs {
    #[command(flatten)]
    pub(crate) copy: CopyArgs,
    /// Sources, then the destination ("-" is stdout)
    #[arg(required = true, num_args = 2.., value_names = ["VM:/SRC", "DST"])]
    pub(crate) paths: Vec<OsString>,
}

/// Options of copies. Modes and times are always copied; a file gets its name when it is complete.
#[derive(Debug, ClapArgs)]
pub(crate) struct CopyArgs {
    /// Copy directories recursively; symbolic links stay links
    #[arg(short, long)]
    pub(crate) recursive: bool,
    /// Continue interrupted copies after comparing them, and skip files that are complete (same size,
    /// time and hash). When interrupted, keep what was copied. To repeat a tree, add -T
    #[arg(long)]
    pub(crate) resume: bool,
    /// Copy to exactly the destination, also if that is a directory, as `cp -T` does
    #[arg(short = 'T', long)]
    pub(crate) no_target_directory: bool,
    /// Flush each file to its disk [default for a single file]
    #[arg(long, overrides_with = "no_fsync")]
    pub(crate) fsync: bool,
    /// Do not flush files to their disk [default with -r]
    #[arg(long, overrides_with = "fsync")]
    pub(crate) no_fsync: bool,
    /// Copy owners and groups, as numbers
    #[arg(short, long)]
    pub(crate) owner: bool,
    /// Copy setuid, setgid and sticky bits
    #[arg(long)]
    pub(crate) preserve_special: bool,
    /// Give files this mode, in octal
    #[arg(long, value_name = "MODE", value_parser = parse_mode)]
    pub(crate) mode: Option<u32>,
    /// Give files the modes of their sources, regardless of the umask and of files that they replace
    #[arg(short, long)]
    pub(crate) preserve: bool,
    /// Write to existing files instead of replacing them; an interrupted copy leaves them incomplete
    #[arg(long, conflicts_with = "resume")]
    pub(crate) in_place: bool,
    /// Replace a symbolic link at the destination instead of following it
    #[arg(long)]
    pub(crate) no_dereference: bool,
    /// Stop after this many files and directories
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_entries: Option<u64>,
    /// Stop after this many bytes
    #[arg(long, value_name = "BYTES")]
    pub(crate) max_bytes: Option<u64>,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// Show only errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print progress and results as one JSON object per line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
#[command(disable_help_flag = true)]
pub(crate) struct LsArgs {
    /// Show modes, owners, sizes, times (in UTC) and link targets
    #[arg(short)]
    pub(crate) long: bool,
    /// Include names that start with a dot
    #[arg(short)]
    pub(crate) all: bool,
    /// List directories themselves, not their entries
    #[arg(short)]
    pub(crate) directory: bool,
    /// Show sizes in units of 1024
    #[arg(short = 'h')]
    pub(crate) human: bool,
    /// Like -l, with numeric owners
    #[arg(short)]
    pub(crate) numeric: bool,
    /// List directories recursively; symbolic links are not followed
    #[arg(short = 'R')]
    pub(crate) recursive: bool,
    /// Reverse the order
    #[arg(short)]
    pub(crate) reverse: bool,
    /// Sort by size, largest first
    #[arg(short = 'S')]
    pub(crate) by_size: bool,
    /// Sort by time, newest first
    #[arg(short = 't', overrides_with = "by_size")]
    pub(crate) by_time: bool,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    pub(crate) help: Option<bool>,
    /// Paths to list [default: the configured virtual machines]
    #[arg(value_name = "VM:/PATH")]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CatArgs {
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// Files to print
    #[arg(required = true, value_name = "VM:/PATH")]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RmArgs {
    /// Remove directories and their content
    #[arg(short, long, short_alias = 'R')]
    pub(crate) recursive: bool,
    /// Ignore files that do not exist
    #[arg(short, long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// Paths to remove
    #[arg(required = true, value_name = "VM:/PATH")]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct MkdirArgs {
    /// Create parent directories; ignore directories that exist
    #[arg(short, long)]
    pub(crate) parents: bool,
    /// Mode of the directories (not of their parents), in octal
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
    /// Follow symbolic links
    #[arg(short = 'L', long)]
    pub(crate) dereference: bool,
    /// Show the file system and its free space instead of the file
    #[arg(short, long, conflicts_with = "dereference")]
    pub(crate) file_system: bool,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// Paths to show
    #[arg(required = true, value_name = "VM:/PATH")]
    pub(crate) paths: Vec<OsString>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct EditArgs {
    #[command(flatten)]
    pub(crate) session: SessionArgs,
    /// File to edit; it is created if it does not exist
    #[arg(value_name = "VM:/PATH")]
    pub(crate) path: OsString,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    pub(crate) format: FormatArgs,
    /// Name or endpoint of the virtual machine
    pub(crate) vm: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IdentityCommand {
    /// Create the certificates of a guest, and the host's key pair if there is none
    Init(InitArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct InitArgs {
    /// Directory for the files [default: that of --identity]
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Replace the guest's certificates; the host's key pair is kept
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
    /// Name or endpoint of the virtual machine
    pub(crate) vm: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Add a virtual machine
    Add(AddArgs),
    /// Remove a virtual machine and its instance data
    #[command(visible_alias = "rm")]
    Remove {
        /// Name of the virtual machine
        name: String,
    },
    /// List virtual machines
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        format: FormatArgs,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AddArgs {
    /// Name of the virtual machine
    pub(crate) name: String,
    /// Endpoint of its agent; see `agent-cli --help`
    pub(crate) endpoint: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MuxCommand {
    /// Start the process, unless it runs already
    Start {
        /// Time without calls after which it ends, as 30s, 10m or 2h [default: that of the
        /// configuration, or 10m]
        #[arg(long, value_name = "TIME")]
        persist: Option<Persist>,
    },
    /// Stop the process; calls that are under way go on
    Stop,
    /// List its connections
    Status {
        #[command(flatten)]
        format: FormatArgs,
    },
    /// Be the process
    #[command(hide = true)]
    Run {
        /// As for start
        #[arg(long)]
        persist: Persist,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Set keys; an empty value removes a key
    Set {
        /// Name of the virtual machine
        vm: String,
        /// KEY VALUE ("-" reads the value from stdin), or KEY=VALUE once or more
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
    /// Print all keys, and the state of the guest
    Show {
        /// Name of the virtual machine
        vm: String,
        #[command(flatten)]
        format: FormatArgs,
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
    /// Datasource of cloud-init: lxd, nocloud, ec2, brightbox, e24cloud, outscale, zstack, aliyun,
    /// openstack, or the path of a preset file, which must contain a slash
    #[arg(long, value_name = "NAME")]
    pub(crate) datasource: String,
    /// Print a JSON list instead of one argument per line
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ServeArgs {
    /// Port to listen on: on AF_VSOCK if a virtual machine has a vsock endpoint, and as `SOCKET_PORT`
    /// beside each Unix socket
    #[arg(long, default_value_t = DEFAULT_HOST_PORT)]
    pub(crate) port: u32,
    /// Print the state of the guests that the running `serve` last recorded
    #[arg(long)]
    pub(crate) status: bool,
    #[command(flatten)]
    pub(crate) format: FormatArgs,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Format {
    /// Text for people
    #[default]
    Human,
    /// JSON for programs
    Json,
}

/// The format of the output.
#[derive(Debug, ClapArgs)]
pub(crate) struct FormatArgs {
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Same as --format json
    #[arg(long)]
    json: bool,
}

impl FormatArgs {
    pub(crate) const fn is_json(&self) -> bool {
        self.json || matches!(self.format, Format::Json)
    }
}

fn on_disconnect() -> impl TypedValueParser<Value = OnDisconnect> {
    PossibleValuesParser::new(["end", "hangup", "keep"]).map(|what| match &what[..] {
        "hangup" => OnDisconnect::Hangup,
        "keep" => OnDisconnect::Keep,
        _ => OnDisconnect::End,
    })
}

/// Parses an octal number without a sign, at most `max`.
pub(crate) fn parse_octal(text: &str, max: u32) -> Option<u32> {
    let value = u32::from_str_radix(text, 8).ok()?;
    (value <= max && !text.starts_with('+')).then_some(value)
}

fn parse_mode(text: &str) -> Result<u32, &'static str> {
    parse_octal(text, PERMISSION_BITS).ok_or("the mode must be octal, such as 0755")
}

fn parse_variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it must have the form NAME=VALUE".to_owned()),
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
    fn clap_accepts_the_definition_of_the_arguments() {
        Args::command().debug_assert();
    }

    #[test]
    fn exec_passes_options_after_the_vm_to_the_command() {
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
    fn exec_ends_the_command_on_disconnect_by_default() {
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
    fn exec_env_needs_a_name_and_a_value() {
        let args = exec(&["--env", "A=b=c", "-e", "B=", "demo", "env"]);
        assert_eq!(args.env[0], ("A".to_owned(), "b=c".to_owned()));
        assert_eq!(args.env[1], ("B".to_owned(), String::new()));
        let wrong = ["agent-cli", "exec", "--env", "=x", "demo", "env"];
        Args::try_parse_from(wrong).unwrap_err();
    }

    #[test]
    fn sftp_stdio_refuses_session_options() {
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
    fn exec_needs_a_command() {
        Args::try_parse_from(["agent-cli", "exec", "demo"]).unwrap_err();
    }
}
