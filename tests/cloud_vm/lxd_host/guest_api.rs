//! What programs in the guest are told, and the events both ways.

use std::{fs, time::Duration};

use futures_util::StreamExt;
use harness::eventually;
use serde_json::{Value, json};

use super::{
    Host,
    commands::{exec, run},
    share::META_DATA,
};
use crate::data::ASK;

/// Listens to events on the guest's socket, and prints the first.
const LISTEN: &str = "
import socket
connection = socket.socket(socket.AF_UNIX)
connection.connect('/dev/lxd/sock')
connection.sendall(b'GET /1.0/events?type=config HTTP/1.1\\r\\nHost: lxd\\r\\n\\r\\n')
lines = connection.makefile()
while lines.readline().strip():
    pass
print('listening', flush=True)
print(next(line for line in lines if line.startswith('{')))
";

impl Host {
    /// Asks what the guest's socket has for these paths: statuses and bodies.
    async fn ask(&self, paths: &[&str]) -> Vec<(u64, String)> {
        let command = [&["python3", "-c", ASK], paths].concat();
        let done = run(&self.client, &command, b"").await;
        assert_eq!(done.code, json!(0), "{done:?}");
        let answers: Vec<(u64, String)> = serde_json::from_str(&done.output).unwrap();
        answers
    }

    /// Checks that the host is heard, and that its word on the guest's socket counts.
    pub(super) async fn check_connected(&mut self) {
        self.ring.read().await;
        self.connect(false).await;
        let text = self.ring.read().await;
        // The ring has no room for the whole word if the agent says it is there just then.
        assert!(text.contains("NECTED\n"), "{text:?}");
        let is_there = async |expected: &str| {
            let test = "test -S /dev/lxd/sock && echo yes || echo no";
            eventually(Duration::from_secs(60), async || {
                self.script(test).await == expected
            })
            .await
        };
        assert!(is_there("no").await, "a socket that the host does not want");
        self.connect(true).await;
        assert!(is_there("yes").await, "no socket in the guest");
    }

    pub(super) async fn check_guest_api(&self) {
        let mode = self.script("stat -c '%a %U' /dev/lxd /dev/lxd/sock").await;
        assert_eq!(mode, "755 root\n600 root");
        let answers = self.ask(&[
            "/",
            "/1.0",
            "/1.0/config",
            "/1.0/config/user.role",
            "/1.0/config/user.none",
            "/1.0/config/security.secret",
            "/1.0/meta-data",
            "/1.0/devices",
        ]);
        let answers = answers.await;
        let statuses: Vec<_> = answers.iter().map(|(status, _)| *status).collect();
        assert_eq!(
            statuses,
            [200, 200, 200, 200, 404, 403, 200, 200],
            "{answers:?}"
        );
        let json = |at: usize| serde_json::from_str::<Value>(&answers[at].1).unwrap();
        assert_eq!(json(0), json!(["/1.0"]));
        let info = json(1);
        assert_eq!(info["api_version"], json!("1.0"));
        assert_eq!(info["instance_type"], json!("virtual-machine"));
        let keys = [
            "cloud-init.network-config",
            "cloud-init.user-data",
            "user.role",
        ];
        let keys = keys.map(|key| format!("/1.0/config/{key}"));
        let mut listed: Vec<String> = serde_json::from_value(json(2)).unwrap();
        listed.sort();
        assert_eq!(listed, keys);
        assert_eq!(answers[3].1, "größe ☃");
        assert!(answers[6].1.contains(META_DATA), "{answers:?}");
        assert_eq!(json(7)["eth0"]["type"], json!("nic"));
        let log = self.data.log();
        assert!(
            log.contains(&"GET /1.0/config/user.role".to_owned()),
            "{log:?}"
        );
    }

    pub(super) async fn check_events(&self) {
        let listen = ["python3", "-c", LISTEN];
        let mut running = exec(&self.client, &listen, json!({})).await;
        running.exec.read_until("1", "listening\n").await;
        let mut events = self
            .client
            .websocket("/1.0/events?type=config")
            .await
            .unwrap();
        self.data.change(|data| {
            data.config.insert("user.role".to_owned(), "neu".to_owned());
        });
        let change = json!({ "key": "user.role", "old_value": "größe ☃", "value": "neu" });
        self.post(&json!({ "type": "config", "metadata": change }))
            .await;
        let printed = running.exec.read_all("1").await;
        let event: Value = serde_json::from_slice(&printed).unwrap();
        assert_eq!(
            (&event["type"], &event["metadata"]),
            (&json!("config"), &change)
        );
        // The new value was there before the event.
        let answers = self.ask(&["/1.0/config/user.role"]).await;
        assert_eq!(answers, [(200, "neu".to_owned())]);
        loop {
            let message = events.next().await.unwrap().unwrap();
            if message.is_text() {
                let event: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
                assert_eq!(event["metadata"], change);
                break;
            }
        }
    }

    async fn post(&self, event: &Value) {
        let event = event.to_string();
        let reply = self.client.request("POST", "/1.0/events", &event).await;
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.body["metadata"], Value::Null);
    }

    /// Checks a disk that is added while the guest runs, and taken away.
    pub(super) async fn check_hotplug(&self) {
        fs::write(self.share.late().join("file"), "late\n").unwrap();
        let event = |action: &str| {
            let config = json!({ "type": "disk", "path": "/srv/late", "source": "/late" });
            let mount = json!({
                "source": "lxd_late", "target": "/srv/late", "fstype": "virtiofs",
                "options": null,
            });
            json!({ "type": "device", "metadata": {
                "action": action, "name": "late", "config": config, "mount": mount,
            }})
        };
        let has = async |expected: &str| {
            let look = "cat /srv/late/file 2>/dev/null || echo none";
            eventually(Duration::from_secs(60), async || {
                self.script(look).await == expected
            })
            .await
        };
        self.post(&event("added")).await;
        assert!(has("late").await, "the disk is not there");
        self.script("echo guest > /srv/late/written").await;
        let written = fs::read_to_string(self.share.late().join("written"));
        assert_eq!(written.unwrap(), "guest\n");
        self.post(&event("removed")).await;
        assert!(has("none").await, "the disk is still there");
    }
}
