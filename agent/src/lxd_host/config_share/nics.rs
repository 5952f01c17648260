//! Sets names and MTUs of network devices from `nics/*.json`. A device is identified by its MAC address.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use vsock_agent_metadata::rtnetlink::{Change, Link, Rtnetlink};

const FOLDER: &str = "nics";

/// The configuration of a device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Nic {
    #[serde(rename = "nic_name", default)]
    name: String,
    #[serde(rename = "mac_address")]
    address: String,
    /// In bytes; 0 leaves it unchanged.
    #[serde(default)]
    mtu: u32,
}

/// Changes the devices of the share. A device that cannot be changed is restored. An error in any file leaves
/// all devices unchanged. Errors are logged.
pub(super) fn apply(share: &Path) {
    let nics = match read(&share.join(FOLDER)) {
        Ok(nics) if nics.is_empty() => return,
        Ok(nics) => nics,
        Err(error) => {
            tracing::error!(%error, "network devices are not changed");
            return;
        }
    };
    if let Err(error) = change_all(&nics) {
        tracing::error!(%error, "cannot list the network devices");
    }
}

/// Reads the files, in the order of their names.
fn read(folder: &Path) -> io::Result<Vec<Nic>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry?.path());
    }
    paths.sort();
    let parse = |path: &PathBuf| {
        serde_json::from_slice(&fs::read(path)?)
            .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
    };
    paths.iter().map(parse).collect()
}

fn change_all(nics: &[Nic]) -> io::Result<()> {
    let kernel = Rtnetlink::open()?;
    let mut links = kernel.links()?;
    free_names(&kernel, &mut links, nics);
    for link in &links {
        let Some(nic) = nic_of(link, nics) else {
            continue;
        };
        match change(&kernel, link, nic) {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(
                    old = link.name,
                    name = nic.name,
                    mtu = nic.mtu,
                    "changed a network device"
                );
            }
            Err(error) => {
                let name = &link.name;
                tracing::error!(name, configured = nic.name, %error, "cannot change a network device");
            }
        }
    }
    Ok(())
}

/// Gives temporary names to devices that are to be renamed and whose names other devices are to get, so that
/// devices can swap names.
fn free_names(kernel: &Rtnetlink, links: &mut [Link], nics: &[Nic]) {
    let all = links.to_vec();
    for link in links {
        let has_new_name = nic_of(link, nics).is_some_and(|nic| is_renamed(link, nic));
        let blocks_another = all.iter().any(|other| {
            other.index != link.index
                && nic_of(other, nics).is_some_and(|nic| nic.name == link.name)
        });
        if !(has_new_name && blocks_another) {
            continue;
        }
        let temporary = format!("tmp{}", link.index);
        let renamed = kernel
            .change(link.index, Change::Up(false))
            .and_then(|()| kernel.change(link.index, Change::Name(&temporary)));
        match renamed {
            Ok(()) => link.name = temporary,
            Err(error) => {
                tracing::error!(name = link.name, %error, "cannot rename a network device")
            }
        }
    }
}

fn nic_of<'a>(link: &Link, nics: &'a [Nic]) -> Option<&'a Nic> {
    nics.iter()
        .find(|nic| parse_address(&nic.address).is_some_and(|address| address == link.address))
}

fn is_renamed(link: &Link, nic: &Nic) -> bool {
    !nic.name.is_empty() && nic.name != link.name
}

/// Changes a device, or restores it. False if it needs no change.
fn change(kernel: &Rtnetlink, link: &Link, nic: &Nic) -> io::Result<bool> {
    let rename = is_renamed(link, nic).then_some(nic.name.as_str());
    let mtu = Some(nic.mtu).filter(|mtu| *mtu > 0 && *mtu != link.mtu);
    if rename.is_none() && mtu.is_none() {
        return Ok(false);
    }
    let steps = [
        Some(Change::Up(false)),
        rename.map(Change::Name),
        mtu.map(Change::Mtu),
        Some(Change::Up(true)),
    ];
    let mut steps = steps.into_iter().flatten();
    let done = steps.try_for_each(|step| kernel.change(link.index, step));
    if done.is_err() {
        let back = [
            Change::Up(false),
            Change::Name(&link.name),
            Change::Mtu(link.mtu),
            Change::Up(link.is_up),
        ];
        for step in back {
            if let Err(error) = kernel.change(link.index, step) {
                tracing::debug!(name = link.name, ?step, %error, "cannot restore a network device");
            }
        }
    }
    done.map(|()| true)
}

/// Six hexadecimal bytes, separated by colons. `None` for all zeros.
fn parse_address(text: &str) -> Option<Vec<u8>> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes.filter(|bytes| bytes.len() == 6 && bytes.iter().any(|byte| *byte != 0))
}

#[cfg(test)]
mod tests {
    use std::{process::Command, thread};

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    const FIRST: &str = "00:16:3e:00:00:01";
    const SECOND: &str = "00:16:3E:00:00:02";

    fn share(name: &str, nics: &[(&str, &str, u32)]) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("agent-nics-{name}-{}", std::process::id()));
        fs::create_dir_all(folder.join(FOLDER)).unwrap();
        for (number, (address, name, mtu)) in nics.iter().enumerate() {
            let nic = serde_json::json!({
                "device_name": "eth", "nic_name": name, "mac_address": address, "mtu": mtu,
            });
            fs::write(
                folder.join(FOLDER).join(format!("{number}.json")),
                nic.to_string(),
            )
            .unwrap();
        }
        folder
    }

    /// Runs a test in a thread with a network of its own: two devices, named `one` and `two`.
    fn alone(test: impl FnOnce() + Send + 'static) {
        let work = move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("the tests of network devices need root");
            let ip = Command::new("ip")
                .args(["link", "add", "one", "mtu", "1400", "address", FIRST])
                .args(["type", "veth", "peer", "two", "address", SECOND])
                .output()
                .expect("the tests of network devices need ip, of iproute2");
            assert!(ip.status.success(), "{ip:?}");
            test();
        };
        thread::spawn(work).join().unwrap();
    }

    /// Name, MTU and whether it is up, of both.
    fn links() -> [(String, u32, bool); 2] {
        let links = Rtnetlink::open().unwrap().links().unwrap();
        [FIRST, SECOND].map(|address| {
            let address = parse_address(address).unwrap();
            let link = links.iter().find(|link| link.address == address).unwrap();
            (link.name.clone(), link.mtu, link.is_up)
        })
    }

    fn link(name: &str, mtu: u32, is_up: bool) -> (String, u32, bool) {
        (name.to_owned(), mtu, is_up)
    }

    #[test]
    fn a_network_device_gets_its_name_and_mtu() {
        alone(|| {
            let folder = share("rename", &[(FIRST, "eth0", 1300), (SECOND, "", 0)]);
            apply(&folder);
            assert_eq!(links()[0], link("eth0", 1300, true));
            assert!(!links()[1].2, "what is as it should be is left alone");
            apply(&folder);
            assert_eq!(links()[0], link("eth0", 1300, true));
            fs::remove_dir_all(&folder).unwrap();
        });
    }

    #[test]
    fn network_devices_can_swap_names() {
        alone(|| {
            let folder = share("swap", &[(FIRST, "two", 0), (SECOND, "one", 0)]);
            apply(&folder);
            assert_eq!(links().map(|(name, ..)| name), ["two", "one"]);
            fs::remove_dir_all(&folder).unwrap();
        });
    }

    #[test]
    fn a_network_device_that_cannot_be_changed_is_restored() {
        alone(|| {
            let long = "a-name-of-more-than-15";
            let folder = share(
                "back",
                &[(FIRST, long, 1300), (SECOND, "eth1", 4_000_000_000)],
            );
            apply(&folder);
            assert_eq!(links()[0], link("one", 1400, false));
            assert_eq!(links()[1].0, "two");
            fs::remove_dir_all(&folder).unwrap();
        });
    }

    #[test]
    fn an_invalid_file_leaves_all_network_devices_unchanged() {
        alone(|| {
            let folder = share("broken", &[(FIRST, "eth0", 1300)]);
            fs::write(folder.join("nics/9.json"), "{").unwrap();
            apply(&folder);
            assert_eq!(links()[0], link("one", 1400, false));
            fs::remove_dir_all(&folder).unwrap();
        });
    }

    #[test]
    fn a_mac_address_has_six_bytes() {
        assert_eq!(parse_address(SECOND).unwrap(), [0, 0x16, 0x3e, 0, 0, 2]);
        for text in [
            "",
            "00:00:00:00:00:00",
            "00:16:3e:00:00",
            "00:16:3e:00:00:0g",
        ] {
            assert_eq!(parse_address(text), None, "{text}");
        }
    }
}
