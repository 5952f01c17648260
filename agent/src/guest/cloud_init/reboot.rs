//! Reboots the machine for instance data that came too late for cloud-init in this boot, as LXD's agent does.
//!
//! A log prevents loops. [`LOG`] outlives reboots, and has these lines:
//!
//! ```text
//! reboot "INSTANCE-ID"   a reboot, logged before it; one for each instance-id
//! done                   a later boot had its data in time; no other reboot before that
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::Path,
};

use vsock_agent_metadata::yaml;

use super::{
    boot::is_systemd,
    redetect::{RedetectError, is_boot_over, run, systemctl},
};
use crate::{defaults, system::mount_table};

const FOLDER: &str = "var/lib/vsock-agent";
const LOG: &str = "var/lib/vsock-agent/cloud-init-reboots";
const DONE: &str = "done";

/// Created when cloud-init has its data in this boot: no reboot follows.
const IN_TIME: &str = "run/vsock-agent-cloud-init-in-time";

/// Where cloud-init stores the instance-id of its data.
const KNOWN_INSTANCE: &str = "var/lib/cloud/data/instance-id";

/// Records that cloud-init has its data in this boot.
///
/// # Errors
///
/// [`RedetectError::File`]. There is no reboot in later boots then.
pub(crate) fn record_in_time(root: &Path) -> Result<(), RedetectError> {
    let marker = root.join(IN_TIME);
    File::create(&marker).map_err(|error| RedetectError::File(marker, error))?;
    let failed = |error| RedetectError::File(root.join(LOG), error);
    match read_log(root).map_err(failed)?.lines().last() {
        None | Some(DONE) => Ok(()),
        Some(_) => append(root, DONE).map_err(failed),
    }
}

/// Reboots the machine for the instance of this meta-data if [`allow`] and systemd's state permit it. True if
/// the machine reboots.
///
/// # Errors
///
/// [`RedetectError`].
pub(crate) async fn reboot(root: &Path, meta_data: &str) -> Result<bool, RedetectError> {
    let id = instance_id(meta_data).unwrap_or_default();
    let known = fs::read_to_string(root.join(KNOWN_INSTANCE)).unwrap_or_default();
    if !id.is_empty() && known.trim() == id {
        return record_in_time(root).map(|()| false);
    }
    let mut line = allow(root, &id);
    let is_systemd = is_systemd(root);
    if line.is_ok() && is_systemd && is_boot_over(root).await? {
        line = Err("the boot is over");
    }
    let line = match line {
        Ok(line) => line,
        Err(reason) => {
            tracing::info!(reason, "no reboot for cloud-init");
            return Ok(false);
        }
    };
    append(root, &line).map_err(|error| RedetectError::File(root.join(LOG), error))?;
    tracing::warn!("rebooting: the data came too late for cloud-init in this boot");
    if is_systemd {
        run(&systemctl(root), &["--no-block", "reboot"]).await?
    } else {
        run(&root.join("sbin/reboot"), &[]).await?
    };
    Ok(true)
}

fn instance_id(meta_data: &str) -> Option<String> {
    let root = yaml::parse(meta_data).ok()??;
    root.get("instance-id")?.text().map(str::to_owned)
}

/// The line for the log, or the reason not to reboot for this instance.
fn allow(root: &Path, id: &str) -> Result<String, &'static str> {
    let uptime = fs::read_to_string(root.join("proc/uptime")).unwrap_or_default();
    let seconds = uptime.split('.').next().and_then(|text| text.parse().ok());
    if seconds.is_none_or(|seconds: u64| seconds > defaults::MAX_REBOOT_UPTIME.as_secs()) {
        return Err("the machine has been up too long");
    }
    if root.join(IN_TIME).exists() {
        return Err("cloud-init had its data in this boot");
    }
    if id.is_empty() {
        return Err("the data have no instance-id");
    }
    if !mount_table::outlives_reboot(root, &Path::new("/").join(LOG)) {
        return Err("the log would not outlive a reboot");
    }
    let line = format!("reboot {id:?}");
    let log = read_log(root).map_err(|_| "the log of earlier reboots cannot be read")?;
    if log.lines().any(|before| before == line) {
        return Err("the machine was rebooted for this instance already");
    }
    match log.lines().last() {
        None | Some(DONE) => Ok(line),
        Some(_) => Err("the last reboot did not help"),
    }
}

/// The log, empty if it is missing.
fn read_log(root: &Path) -> io::Result<String> {
    match fs::read_to_string(root.join(LOG)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        log => log,
    }
}

/// Appends a line and syncs it to the disk.
fn append(root: &Path, line: &str) -> io::Result<()> {
    let folder = root.join(FOLDER);
    fs::create_dir_all(&folder)?;
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(root.join(LOG))?;
    log.write_all(format!("{line}\n").as_bytes())?;
    log.sync_all()?;
    // Sync the directory entries of the file and its directory.
    for folder in folder.ancestors().take(2) {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::{super::fake::Root, *};

    const META_DATA: &str = "instance-id: one\nlocal-hostname: guest\n";

    /// A machine whose cloud-init has begun without the data.
    fn late() -> Root {
        let root = Root::booting();
        root.systemctl("SystemState=starting", "");
        root.program("sbin/reboot", "exit 1");
        root.write("run/cloud-init/status.json", "");
        root
    }

    /// The next boot of it.
    fn boot_again(root: &Root) {
        let _ = fs::remove_file(root.path().join(IN_TIME));
    }

    async fn reboots(root: &Root, meta_data: &str) -> bool {
        reboot(root.path(), meta_data).await.unwrap()
    }

    async fn is_refused_after(change: impl FnOnce(&Root)) -> bool {
        let root = late();
        change(&root);
        let reboots = reboots(&root, META_DATA).await;
        assert_eq!(reboots, !root.log().is_empty());
        assert_eq!(reboots, root.path().join(LOG).exists());
        !reboots
    }

    #[tokio::test]
    async fn a_machine_reboots_once_for_an_instance_id() {
        let root = late();
        assert!(reboots(&root, META_DATA).await);
        assert_eq!(root.log(), ["--no-block reboot"]);
        let log = fs::read_to_string(root.path().join(LOG)).unwrap();
        assert_eq!(log, "reboot \"one\"\n");
        boot_again(&root);
        record_in_time(root.path()).unwrap();
        boot_again(&root);
        assert!(!reboots(&root, META_DATA).await);
        assert!(!reboots(&root, "instance-id: 'one'\nmore: yes\n").await);
        assert!(reboots(&root, "instance-id: two\n").await);
    }

    #[tokio::test]
    async fn no_reboot_follows_one_that_did_not_help() {
        let root = late();
        for (id, expected) in [("one", true), ("two", false), ("three", false)] {
            let meta_data = format!("instance-id: {id}\n");
            assert_eq!(reboots(&root, &meta_data).await, expected, "{id}");
            boot_again(&root);
        }
        // It did, after all: the next one is for a boot after this.
        record_in_time(root.path()).unwrap();
        assert!(!reboots(&root, "instance-id: four\n").await);
        boot_again(&root);
        record_in_time(root.path()).unwrap();
        boot_again(&root);
        assert!(reboots(&root, "instance-id: four\n").await);
        let log = fs::read_to_string(root.path().join(LOG)).unwrap();
        assert_eq!(log, "reboot \"one\"\ndone\nreboot \"four\"\n");
    }

    #[tokio::test]
    async fn another_reboot_is_allowed_after_one_that_helped() {
        let root = late();
        assert!(reboots(&root, META_DATA).await);
        boot_again(&root);
        root.write(KNOWN_INSTANCE, "one\n");
        assert!(!reboots(&root, META_DATA).await);
        boot_again(&root);
        assert!(reboots(&root, "instance-id: two\n").await);
    }

    #[tokio::test]
    async fn no_reboot_if_cloud_init_has_its_data() {
        assert!(is_refused_after(|root| record_in_time(root.path()).unwrap()).await);
        let cloud_init_knows = |id: &'static str| move |root: &Root| root.write(KNOWN_INSTANCE, id);
        assert!(is_refused_after(cloud_init_knows("one\n")).await);
        assert!(!is_refused_after(cloud_init_knows("other\n")).await);
    }

    #[tokio::test]
    async fn no_reboot_after_the_boot_is_over() {
        for state in ["running", "degraded", "stopping"] {
            let state = format!("SystemState={state}");
            assert!(is_refused_after(|root| root.systemctl(&state, "")).await);
        }
        for uptime in ["301.00 17.20\n", "", "x"] {
            assert!(is_refused_after(|root| root.write("proc/uptime", uptime)).await);
        }
    }

    #[tokio::test]
    async fn no_reboot_without_a_log_that_outlives_it() {
        for mounts in [
            "",
            "/dev/vda1 / ext4 rw 0 0\ntmpfs /var/lib tmpfs rw 0 0\n",
            "overlay / overlay rw 0 0\n",
            "/dev/vda1 /var/lib/vsock ext4 rw 0 0\n",
        ] {
            let change = |root: &Root| root.write("proc/self/mounts", mounts);
            assert!(is_refused_after(change).await, "{mounts}");
        }
        let mounts = "tmpfs / tmpfs rw 0 0\n/dev/vda1 /var ext4 rw 0 0\n";
        assert!(!is_refused_after(|root| root.write("proc/self/mounts", mounts)).await);
        let root = late();
        root.write(&format!("{FOLDER}/other"), "");
        symlink("/nowhere/log", root.path().join(LOG)).unwrap();
        reboot(root.path(), META_DATA).await.unwrap_err();
        assert!(root.log().is_empty());

        let root = late();
        root.write(&format!("{LOG}/folder"), "");
        assert!(!reboots(&root, META_DATA).await);
    }

    #[tokio::test]
    async fn no_reboot_without_an_instance_id() {
        let root = late();
        for meta_data in [
            "",
            "local-hostname: a\n",
            "instance-id:\n",
            "instance-id: []\n",
        ] {
            assert!(!reboots(&root, meta_data).await, "{meta_data}");
        }
    }

    #[tokio::test]
    async fn without_systemd_the_machine_reboots_by_sbin_reboot() {
        let root = late();
        root.remove("run/systemd/system");
        let script = format!("echo rebooted >> {}", root.path().join("log").display());
        root.program("sbin/reboot", &script);
        assert!(reboots(&root, META_DATA).await);
        assert_eq!(root.log(), ["rebooted"]);
    }
}
