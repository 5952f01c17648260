//! Commands in the guest, as LXD's host runs them: it listens to events, and believes them alone.

use futures_util::StreamExt;
use harness::{RawClient, RawExec, raw::Socket};
use serde_json::{Value, json};

use super::Host;

/// A command that has ended.
#[derive(Debug)]
pub(crate) struct Done {
    /// What it returned.
    pub(crate) code: Value,
    /// The operation's status.
    pub(crate) status: Value,
    pub(crate) output: String,
    pub(crate) errors: String,
}

/// A command that runs.
pub(super) struct Running {
    pub(super) exec: RawExec,
    events: Socket,
}

/// Starts a command.
pub(super) async fn exec(client: &RawClient, command: &[&str], more: Value) -> Running {
    assert_eq!(client.get("/1.0").await.status, 200);
    let events = client.websocket("/1.0/events").await.unwrap();
    let exec = client.exec(command, more).await;
    let operation = client.get(&format!("/1.0/operations/{}", exec.id)).await;
    assert_eq!(operation.status, 200, "{operation:?}");
    Running { exec, events }
}

/// Runs a command without a terminal to its end.
pub(crate) async fn run(client: &RawClient, command: &[&str], input: &[u8]) -> Done {
    let Running { mut exec, events } = exec(client, command, json!({})).await;
    exec.send(input).await;
    exec.end_input().await;
    let id = exec.id.clone();
    // Events are read all the while, or the agent takes this host for one that is gone.
    let streams = async { (exec.read_all("1").await, exec.read_all("2").await) };
    let ((output, errors), done) = tokio::join!(streams, ended(events, &id));
    Done {
        output: String::from_utf8(output).unwrap(),
        errors: String::from_utf8(errors).unwrap(),
        ..done
    }
}

/// Runs a shell script in the guest, which must succeed, and gives what it printed.
pub(crate) async fn script(client: &RawClient, script: &str) -> String {
    let done = run(client, &["sh", "-c", script], b"").await;
    assert_eq!(done.code, json!(0), "{script}: {done:?}");
    done.output.trim().to_owned()
}

/// Gives what is in the envelope of an answer.
pub(crate) async fn get(client: &RawClient, path: &str) -> Value {
    let mut reply = client.get(path).await;
    assert_eq!(reply.status, 200, "{path}: {reply:?}");
    assert_eq!(reply.body["type"], json!("sync"), "{path}: {reply:?}");
    reply.body["metadata"].take()
}

impl Running {
    /// Waits for the event that says how it ended.
    pub(super) async fn end(self) -> Done {
        ended(self.events, &self.exec.id).await
    }
}

async fn ended(mut events: Socket, id: &str) -> Done {
    loop {
        let message = events.next().await.unwrap().unwrap();
        let text = message.to_text().unwrap_or_default();
        let event = serde_json::from_str::<Value>(text).unwrap_or_default();
        let operation = &event["metadata"];
        let is_final = operation["status_code"].as_u64() >= Some(200);
        if event["type"] == "operation" && operation["id"] == id && is_final {
            return Done {
                code: operation["metadata"]["return"].clone(),
                status: operation["status"].clone(),
                output: String::new(),
                errors: String::new(),
            };
        }
    }
}

impl Host {
    pub(super) async fn check_exec(&self) {
        self.check_pipes().await;
        self.check_terminal().await;
        self.check_ends().await;
    }

    async fn check_pipes(&self) {
        let script = "cat; id -u >&2; echo $HOME $USER $LANG $PATH; exit 7";
        let input = "größe\n".repeat(10_000);
        let done = run(&self.client, &["sh", "-c", script], input.as_bytes()).await;
        assert_eq!((&done.code, &done.status), (&json!(7), &json!("Success")));
        assert_eq!(done.errors, "0\n");
        let rest = done.output.strip_prefix(&input).expect("all of the input");
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        assert_eq!(rest, format!("/root root C.UTF-8 {path}\n"));
    }

    async fn check_terminal(&self) {
        let more = json!({
            "interactive": true, "width": 100, "height": 40, "user": 65534, "group": 65534,
            "cwd": "/tmp", "environment": { "TERM": "xterm" },
        });
        let script = "pwd; id -u; stty size; \
            until [ \"$(stty size)\" = '50 120' ]; do sleep 0.1; done; read line; echo $line";
        let mut running = exec(&self.client, &["sh", "-c", script], more).await;
        let before = running.exec.read_until("0", "40 100\r\n").await;
        assert_eq!(before, "/tmp\r\n65534\r\n40 100\r\n");
        let size = json!({ "width": "120", "height": "50" });
        let resize = json!({ "command": "window-resize", "args": size, "signal": 0 });
        running.exec.control(resize).await;
        running.exec.send("größe\r".as_bytes()).await;
        let after = running.exec.read_all("0").await;
        assert_eq!(String::from_utf8(after).unwrap(), "größe\r\ngröße\r\n");
        running.exec.sockets.remove("0");
        assert_eq!(running.end().await.code, json!(0));
    }

    async fn check_ends(&self) {
        let sleeping = || exec(&self.client, &["sleep", "600"], json!({}));
        let mut running = sleeping().await;
        let signal = json!({ "command": "signal", "args": null, "signal": 15 });
        running.exec.control(signal).await;
        assert_eq!(running.end().await.code, json!(143));
        // A host that is gone. LXD's agent kills at once (137); ours hangs up first, as a terminal does.
        let mut running = sleeping().await;
        running.exec.sockets.clear();
        assert_eq!(running.end().await.code, json!(129));
        let running = exec(&self.client, &["no-such-command"], json!({})).await;
        let done = running.end().await;
        assert_eq!((done.code, done.status), (json!(127), json!("Failure")));
    }
}
