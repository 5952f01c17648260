//! `agent-cli`, and its `serve`, with a monitor's folder on a file system that does not answer.

use std::{fs, path::Path, sync::mpsc, thread, time::Duration};

use harness::{HangingFolder, TestFolder, eventually, in_own_mounts};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::hostile_folder::{PORT, Process, agent_cli, answers, start_serving};

/// Far more than anything here takes, and far less than for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// Guests whose monitor's folder hangs: more than there are workers.
const HUNG: usize = 8;

fn machines(folder: &Path, count: usize) -> String {
    let machine = |number| {
        let path = folder.join(format!("vm{number}"));
        let name = folder.file_name().unwrap().display();
        format!(
            "[vms.{name}{number}]\nendpoint = \"unix:{}\"\nplain = true\n",
            path.display()
        )
    };
    (0..count).map(machine).collect()
}

#[test]
fn hung_monitor_folder_does_not_delay_other_guests() {
    in_own_mounts(|| {
        let own = TestFolder::new("hung-folder");
        let [configuration, hung, sound] =
            ["configuration", "hung", "sound"].map(|name| own.path().join(name));
        for folder in [&configuration, &hung, &sound] {
            fs::create_dir(folder).unwrap();
        }
        let config = configuration.join("config.toml");
        let write = |sound_ones| {
            let text = machines(&hung, HUNG) + &machines(&sound, sound_ones);
            fs::write(&config, text).unwrap();
        };
        write(1);
        let hanging = HangingFolder::mount(&hung);
        // A process that hangs in there cannot be killed: a failure would hang as well.
        let (end, ended) = mpsc::channel::<()>();
        let unmounting = thread::spawn(move || {
            let _ = ended.recv_timeout(4 * PATIENCE);
            drop(hanging);
        });
        let log = own.path().join("log");
        let mut serving = start_serving(&configuration, &log);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let is_served = |number: usize| {
            let socket = sound.join(format!("vm{number}_{PORT}"));
            runtime.block_on(eventually(PATIENCE, async || answers(&socket)))
        };
        assert!(is_served(0));
        // More of them come, and a change is noticed.
        write(3);
        assert!(is_served(2));

        // A process cannot even end while a thread of its own is in such a system call.
        let said_by_cli = own.path().join("cli-log");
        let cli = agent_cli(&configuration, &["--connect-timeout", "2", "info", "hung0"])
            .stderr(fs::File::create(&said_by_cli).unwrap())
            .spawn();
        let mut cli = Process(cli.unwrap());
        let said = async || {
            fs::read_to_string(&said_by_cli)
                .unwrap()
                .contains("cannot connect")
        };
        assert!(runtime.block_on(eventually(PATIENCE, said)));

        let threads = format!("/proc/{}/task", serving.0.id());
        let threads = fs::read_dir(threads).unwrap().count();
        assert!(threads < 20, "{threads} threads");
        let pid = Pid::from_raw(serving.0.id().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        // Threads in such a system call end with it only.
        let said = async || fs::read_to_string(&log).unwrap().contains("stopping");
        assert!(runtime.block_on(eventually(PATIENCE, said)));
        drop(end);
        unmounting.join().unwrap();
        for process in [&mut serving, &mut cli] {
            let ends = async || process.0.try_wait().unwrap().is_some();
            assert!(runtime.block_on(eventually(PATIENCE, ends)));
        }
    });
}
