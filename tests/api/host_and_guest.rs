//! The whole way of a guest's data, with both programs as they are: `agent-cli config`, then
//! `agent-cli serve`, then the agent, then a program in the guest.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use harness::{
    RawClient, TestFolder, eventually,
    vm::{Product, build_for_here},
};
use serde_json::{Value, json};
use tokio::{
    net::UnixDatagram,
    process::{Child, Command},
    sync::OnceCell,
    time::timeout,
};

use crate::events::next_event;

/// Longest that a start or a change may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The host's port for guests.
const PORT: &str = "9000";

/// A host's configuration, and the guest `one` beside it.
struct Ends {
    folder: TestFolder,
    product: &'static Product,
    /// What `identity init` made for the guest.
    identity: PathBuf,
}

impl Ends {
    async fn new() -> Self {
        static PRODUCT: OnceCell<Product> = OnceCell::const_new();
        let build = async || build_for_here().await.unwrap();
        let mut ends = Self {
            folder: TestFolder::new("ends"),
            product: PRODUCT.get_or_init(build).await,
            identity: PathBuf::new(),
        };
        let made = ends.cli(&["identity", "init", "--format", "json", "one"]);
        let made: Value = serde_json::from_str(&made.await).unwrap();
        ends.identity = made["guest_files"].as_str().unwrap().into();
        let endpoint = format!("unix:{}", ends.path("agent.sock").display());
        ends.cli(&["vm", "add", "one", &endpoint]).await;
        ends
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("AGENT_CLI_CONFIG", self.path("config.toml"))
            .env("XDG_CONFIG_HOME", self.folder.path())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    async fn cli(&self, arguments: &[&str]) -> String {
        let output = self.command(&self.product.cli, arguments).output().await;
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a program, and waits until it says that it is ready.
    async fn start(&self, program: &Path, arguments: &[&str]) -> Child {
        let notices = self.path("notify");
        let _ = fs::remove_file(&notices);
        let manager = UnixDatagram::bind(&notices).unwrap();
        let mut command = self.command(program, arguments);
        let child = command.env("NOTIFY_SOCKET", &notices).spawn().unwrap();
        let mut notice = [0; 64];
        let heard = timeout(PATIENCE, manager.recv(&mut notice)).await;
        let length = heard.expect("it is not ready in time").unwrap();
        assert_eq!(&notice[..length], b"READY=1");
        child
    }

    async fn serve(&self) -> Child {
        let arguments = ["serve", "--port", PORT];
        self.start(&self.product.cli, &arguments).await
    }

    /// The agent with its identity, and with `more`.
    async fn agent(&self, more: &[&str]) -> Child {
        let unix = |name: &str| format!("unix:{}", self.path(name).display());
        let (listen, host) = (unix("agent.sock"), unix(&format!("agent.sock_{PORT}")));
        let socket = self.guest_socket();
        let arguments = [
            ["--config", "/dev/null", "--cloud-init", "off"].as_slice(),
            &["--identity", self.identity.to_str().unwrap()],
            &["--listen", &listen, "--host", &host],
            &["--guest-socket", socket.to_str().unwrap()],
            more,
        ];
        self.start(&self.product.agent, &arguments.concat()).await
    }

    fn guest_socket(&self) -> PathBuf {
        self.path("dev/lxd/sock")
    }

    /// What the host knows of the guest's state.
    async fn state(&self) -> Value {
        let status = self.cli(&["serve", "--status", "--format", "json"]).await;
        let mut status: Value = serde_json::from_str(&status).unwrap();
        status["last"]["guests"]["one"]["guest"]["state"].take()
    }
}

#[tokio::test]
async fn config_set_reaches_the_guest() {
    let ends = Ends::new().await;
    ends.cli(&["config", "set", "one", "user.a", "erste ä€"])
        .await;
    let _serving = ends.serve().await;
    let _agent = ends.agent(&[]).await;

    let mode = fs::metadata(ends.guest_socket()).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let guest = RawClient::new(&ends.guest_socket());
    let value = async || guest.get("/1.0/config/user.a").await.body;
    assert_eq!(value().await, json!("erste ä€"));

    let mut events = guest.websocket("/1.0/events?type=config").await.unwrap();
    ends.cli(&["config", "set", "one", "user.a", "zweite"])
        .await;
    let event = timeout(PATIENCE, next_event(&mut events)).await.unwrap();
    let change = json!({ "key": "user.a", "old_value": "erste ä€", "value": "zweite" });
    assert_eq!(event["metadata"], change);
    assert_eq!(value().await, json!("zweite"));

    let report = guest.request("PATCH", "/1.0", r#"{"state":"Ready"}"#).await;
    assert_eq!(report.status, 200, "{report:?}");
    assert!(eventually(PATIENCE, async || ends.state().await == "Ready").await);
}

#[tokio::test]
async fn guest_boots_without_serve_and_gets_data_later() {
    let ends = Ends::new().await;
    ends.cli(&["config", "set", "one", "user.a", "late"]).await;
    let _agent = ends.agent(&["--ready-timeout", "1"]).await;
    assert!(!ends.guest_socket().exists());
    let _serving = ends.serve().await;
    assert!(eventually(PATIENCE, async || ends.guest_socket().exists()).await);
    let guest = RawClient::new(&ends.guest_socket());
    let reply = guest.get("/1.0/config/user.a").await;
    assert_eq!(reply.body, json!("late"));
}
