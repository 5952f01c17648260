//! The status port as the host has it: the last bytes of what the guest said, until they are read.

use harness::{TestVm, eventually, vm::Monitor};
use serde_json::json;

use crate::PATIENCE;

/// QEMU's name of the port's other end.
const RING: &str = "status";

/// QEMU's arguments for a port of this name, of which the last bytes are kept.
pub(crate) fn status_port(name: &str, bytes: u32) -> [String; 6] {
    let ring = format!("ringbuf,id={RING},size={bytes}");
    let port = format!("virtserialport,chardev={RING},name={name}");
    let bus = "virtio-serial-pci";
    ["-device", bus, "-chardev", &ring, "-device", &port].map(str::to_owned)
}

/// What a guest says of itself.
pub(crate) struct Ring {
    monitor: Monitor,
    bytes: u32,
}

impl Ring {
    /// Connects to the monitor of a machine that was just switched on.
    pub(crate) async fn open(vm: &TestVm, bytes: u32) -> Self {
        Self {
            monitor: vm.monitor().await.unwrap(),
            bytes,
        }
    }

    /// What the guest said since the host last listened, as far as there was room for it.
    pub(crate) async fn read(&mut self) -> String {
        let wanted = json!({ "device": RING, "size": self.bytes, "format": "utf8" });
        let text = self.monitor.execute("ringbuf-read", wanted).await.unwrap();
        text.as_str().unwrap().to_owned()
    }

    /// Waits for a word, by the rule of LXD's host: the last line but one of what is in the ring.
    pub(crate) async fn hear(&mut self, word: &str) {
        let heard = eventually(PATIENCE, async || {
            self.read().await.rsplit('\n').nth(1) == Some(word)
        });
        assert!(heard.await, "the host never hears {word}");
    }

    /// Asks the machine to switch itself off.
    pub(crate) async fn power_down(&mut self) {
        let off = self.monitor.execute("system_powerdown", json!({}));
        assert_eq!(off.await.unwrap(), json!({}));
    }
}
