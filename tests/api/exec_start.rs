//! Commands before their program runs: on a file system that does not answer it may never.

use std::{fs, path::PathBuf, time::Duration};

use harness::{
    HangingFolder, RawClient, RawExec, TestAgent, TestFolder, eventually, in_own_mounts,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::timeout;

/// Far more than anything here takes, and far less than for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// An agent, and a folder in which every look-up hangs and cannot be killed.
struct Hang {
    client: RawClient,
    path: PathBuf,
    // The waiting must end before the agent does, and the folder goes last.
    hanging: Option<HangingFolder>,
    _agent: TestAgent,
    _folder: TestFolder,
}

impl Hang {
    fn start() -> Self {
        let folder = TestFolder::new("hanging");
        let agent = TestAgent::start();
        Self {
            client: RawClient::new(&agent.socket()),
            path: folder.path().to_owned(),
            hanging: Some(HangingFolder::mount(folder.path())),
            _agent: agent,
            _folder: folder,
        }
    }

    /// A command whose directory is there.
    async fn exec(&self, more: Value) -> RawExec {
        let mut fields = json!({ "cwd": self.path });
        let more = more.as_object().unwrap().clone();
        fields.as_object_mut().unwrap().extend(more);
        self.client.exec(&["true"], fields).await
    }

    /// Operations that have not ended.
    async fn running(&self) -> usize {
        let reply = self.client.get("/1.0/operations?recursion=1").await;
        let lists = reply.body["metadata"].as_object().unwrap().clone();
        let all = lists.values().flat_map(|list| list.as_array().unwrap());
        all.filter(|operation| operation["status_code"].as_u64().unwrap() < 200)
            .count()
    }
}

fn hanging(test: impl AsyncFnOnce(&mut Hang) + Send + 'static) {
    in_own_mounts(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut hang = Hang::start();
        let bounded = async { timeout(2 * PATIENCE, test(&mut hang)).await };
        runtime.block_on(bounded).expect("it hangs itself");
    });
}

#[test]
fn hanging_starts_do_not_block_other_commands() {
    hanging(async |hang| {
        let mut stuck = Vec::new();
        for _ in 0..40 {
            stuck.push(hang.exec(json!({})).await);
        }
        let mut exec = hang.client.exec(&["echo", "up"], json!({})).await;
        assert_eq!(exec.read_all("1").await, b"up\n");
        assert_eq!(exec.wait().await["metadata"]["return"], json!(0));
        assert_eq!(hang.running().await, 40);
    });
}

#[test]
fn hanging_start_ends_at_its_time_limit() {
    hanging(async |hang| {
        let end = hang.exec(json!({ "timeout": 1 })).await.wait().await;
        assert_eq!(end["status_code"], json!(400), "{end}");
        assert_eq!(end["metadata"]["timed_out"], json!(true), "{end}");
        assert_eq!(end["metadata"]["start_error"], json!("killed"), "{end}");
        assert_eq!(end["err"], json!("ended before it ran: its time is over"));
    });
}

#[test]
fn hanging_start_can_be_cancelled() {
    hanging(async |hang| {
        let exec = hang.exec(json!({})).await;
        let waiting = async || not_executed().len() == 1;
        assert!(eventually(PATIENCE, waiting).await);
        let path = format!("/1.0/operations/{}", exec.id);
        assert_eq!(hang.client.request("DELETE", &path, "").await.status, 200);
        let end = exec.wait().await;
        assert_eq!(end["status_code"], json!(401), "{end}");
        assert_eq!(end["metadata"]["start_error"], json!("killed"), "{end}");
    });
}

#[tokio::test]
async fn command_deleted_before_its_sockets_are_joined_is_cancelled() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let reply = client.post_exec(&["true"], json!({})).await;
    let path = reply.body["operation"].as_str().unwrap().to_owned();
    assert_eq!(client.request("DELETE", &path, "").await.status, 200);
    let end = client.get(&format!("{path}/wait")).await.body["metadata"].clone();
    assert_eq!(end["status_code"], json!(401), "{end}");
    assert_eq!(end["err"], json!("cancelled before it started"));
}

#[test]
fn hanging_start_ends_with_its_client() {
    hanging(async |hang| {
        drop(hang.exec(json!({})).await);
        let ended = async || hang.running().await == 0;
        assert!(eventually(PATIENCE, ended).await);
    });
}

#[test]
fn unkillable_program_frees_its_slot_when_ended() {
    hanging(async |hang| {
        let path = hang.path.join("file");
        let script = "echo up; exec cat \"$0\"";
        let command = ["sh", "-c", script, path.to_str().unwrap()];
        let mut exec = hang.client.exec(&command, json!({ "timeout": 1 })).await;
        exec.read_until("1", "up").await;
        let end = exec.wait().await;
        assert_eq!(end["status_code"], json!(400), "{end}");
        assert_eq!(end["metadata"]["return"], json!(137), "{end}");
        assert_eq!(end["metadata"]["timed_out"], json!(true), "{end}");
        assert!(
            end["err"].as_str().unwrap().contains("cannot be killed"),
            "{end}"
        );
    });
}

#[test]
fn hanging_start_does_not_hold_other_commands_pipes() {
    hanging(async |hang| {
        // Its pipes are open while the others are forked.
        let mut cat = hang.client.exec(&["cat"], json!({})).await;
        cat.send(b"a").await;
        cat.read_until("1", "a").await;
        let mut stuck = Vec::new();
        for _ in 0..4 {
            stuck.push(hang.exec(json!({})).await);
        }
        let waiting = async || not_executed().len() == 4;
        assert!(eventually(PATIENCE, waiting).await);
        for pid in not_executed() {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
            assert_eq!(open, 3, "three streams");
        }
        cat.end_input().await;
        assert_eq!(cat.read_all("1").await, b"");
        assert_eq!(cat.wait().await["metadata"]["return"], json!(0));
    });
}

/// Children of this process that have not executed a program, in this mount namespace: another test
/// has another.
fn not_executed() -> Vec<i32> {
    const FORKED_WITHOUT_EXEC: u64 = 0x40;
    let own = fs::read_link("/proc/thread-self/ns/mnt").unwrap();
    let me = std::process::id().to_string();
    let numbers = fs::read_dir("/proc").unwrap().flatten();
    let pids = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<_> = fields.split_ascii_whitespace().collect();
        let namespace = fs::read_link(format!("/proc/{pid}/ns/mnt"));
        fields.get(1) == Some(&&*me)
            && fields[6].parse::<u64>().unwrap() & FORKED_WITHOUT_EXEC != 0
            && namespace.is_ok_and(|namespace| namespace == own)
    })
    .collect()
}

/// Whether a signal waits for a process to take it.
fn has_pending_signal(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut sets = status.lines().filter_map(|line| {
        line.strip_prefix("SigPnd:")
            .or(line.strip_prefix("ShdPnd:"))
    });
    sets.any(|set| u64::from_str_radix(set.trim(), 16).unwrap() != 0)
}

#[tokio::test]
async fn command_killed_by_a_reserved_signal_reports_it() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    for signal in [33, 34, 64] {
        let kill = format!("kill -{signal} $$");
        let exec = client.exec(&["sh", "-c", &kill], json!({})).await;
        let end = exec.wait().await;
        assert_eq!(end["status_code"], json!(200), "{end}");
        assert_eq!(end["metadata"]["return"], json!(128 + signal), "{end}");
        assert_eq!(end["metadata"]["signal"], json!(signal), "{end}");
    }
}

#[test]
fn command_killed_before_exec_reports_that_it_never_ran() {
    hanging(async |hang| {
        let mut exec = hang.exec(json!({})).await;
        let waiting = async || not_executed().len() == 1;
        assert!(eventually(PATIENCE, waiting).await);
        let pid = not_executed()[0];
        // Until the file system has its request, the signal would end it at once.
        let hanging = hang.hanging.as_ref().unwrap();
        assert!(eventually(PATIENCE, async || hanging.requests() != 0).await);
        let number = Signal::SIGTERM as i32;
        let signal = json!({ "command": "signal", "args": null, "signal": number });
        exec.control(signal).await;
        // It dies of the signal when it does not wait any more.
        let pending = async || has_pending_signal(pid);
        assert!(eventually(PATIENCE, pending).await);
        hang.hanging = None;
        let end = exec.wait().await;
        assert_eq!(end["status_code"], json!(400), "{end}");
        assert_eq!(end["metadata"]["return"], json!(128 + number), "{end}");
        assert_eq!(end["metadata"]["start_error"], json!("killed"), "{end}");
    });
}
