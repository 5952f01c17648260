//! Reads the state of cloud-init in this boot, and chooses how to run its detection again.
//!
//! cloud-init's generator runs before any unit, so before the agent. It creates `/run/cloud-init/enabled` or
//! `disabled`, and writes the detected datasources to `/run/cloud-init/cloud.cfg`.

use std::{fs, path::Path};

/// cloud-init's runtime directory.
pub(super) const RUN: &str = "run/cloud-init";
/// The program that detects datasources.
pub(super) const DS_IDENTIFY: &str = "usr/lib/cloud-init/ds-identify";
/// Created before the detection runs again: it does so once in a boot.
pub(super) const MARKER: &str = "run/vsock-agent-cloud-init";

/// Possible paths of the generator (`systemd.generator(7)`).
const GENERATORS: [&str; 2] = [
    "usr/lib/systemd/system-generators/cloud-init-generator",
    "lib/systemd/system-generators/cloud-init-generator",
];

/// A datasource of cloud-init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Datasource {
    /// The socket of the guest API.
    Lxd,
    /// The seed directory.
    NoCloud,
}

impl Datasource {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Lxd => "LXD",
            Self::NoCloud => "NoCloud",
        }
    }

    /// The files by which ds-identify detects it; one of them is enough. Relative to the guest's `/`.
    pub(super) const fn paths(self) -> &'static [&'static str] {
        match self {
            Self::Lxd => &["dev/lxd/sock"],
            Self::NoCloud => &[
                "var/lib/cloud/seed/nocloud/meta-data",
                "var/lib/cloud/seed/nocloud-net/meta-data",
            ],
        }
    }
}

/// How to run the detection again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Do not run it, for this reason.
    None(&'static str),
    /// It is too late in this boot, for this reason.
    TooLate(&'static str),
    /// Do not run it: the datasource is detected already.
    AlreadyListed,
    /// cloud-init will run: run ds-identify.
    RunDsIdentify,
    /// cloud-init will not run: run its generator.
    RunGenerator,
}

/// Chooses an action by the files below `root`. The caller must check systemd's state, too.
pub(super) fn decide(root: &Path, datasource: Datasource) -> Action {
    let has = |path: &str| root.join(path).exists();
    let is_systemd = is_systemd(root);
    let can_decide = || has(DS_IDENTIFY) && GENERATORS.into_iter().any(has);
    if !has("etc/cloud") || (is_systemd && !can_decide()) {
        return Action::None("there is no cloud-init");
    }
    if has("etc/cloud/cloud-init.disabled") || is_disabled_by_kernel(root) {
        return Action::None("cloud-init is disabled");
    }
    if !datasource.paths().iter().copied().any(has) {
        return Action::None("the datasource's files are missing");
    }
    let run = root.join(RUN);
    // cloud-init's first stage creates the link before its target.
    if fs::symlink_metadata(run.join("status.json")).is_ok() {
        return Action::TooLate("cloud-init has begun");
    }
    if has(MARKER) {
        return Action::None("it has run in this boot already");
    }
    let has_found = lists(&run.join("cloud.cfg"), datasource);
    match is_systemd {
        true if !run.join("enabled").exists() => Action::RunGenerator,
        _ if has_found => Action::AlreadyListed,
        true => Action::RunDsIdentify,
        false if !run.exists() => Action::None("cloud-init has yet to detect its datasource"),
        false => Action::TooLate("systemd is not running"),
    }
}

/// Whether systemd is the init system, as `sd_booted(3)` checks it.
pub(super) fn is_systemd(root: &Path) -> bool {
    root.join("run/systemd/system").exists()
}

fn is_disabled_by_kernel(root: &Path) -> bool {
    let line = fs::read_to_string(root.join("proc/cmdline")).unwrap_or_default();
    line.split_ascii_whitespace()
        .any(|word| word == "cloud-init=disabled")
}

/// Whether a datasource is among those detected: `datasource_list: [ NoCloud, LXD, None ]`.
fn lists(config: &Path, datasource: Datasource) -> bool {
    let text = fs::read_to_string(config).unwrap_or_default();
    let lists = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("datasource_list:"));
    lists
        .flat_map(|list| list.split(['[', ']', ',']))
        .any(|name| name.trim() == datasource.name())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::{super::fake::Root, *};

    /// The action for the root of a booting system after `change`.
    fn decide_after(change: impl FnOnce(&Root)) -> Action {
        let root = Root::booting();
        change(&root);
        decide(root.path(), Datasource::Lxd)
    }

    fn is_left_alone(change: impl FnOnce(&Root)) -> bool {
        matches!(decide_after(change), Action::None(_))
    }

    #[test]
    fn the_generator_runs_again_if_it_detected_nothing() {
        assert_eq!(decide_after(|_| {}), Action::RunGenerator);
        // As after an interrupted redetection.
        assert_eq!(decide_after(|root| root.remove(RUN)), Action::RunGenerator);
    }

    #[test]
    fn ds_identify_runs_unless_the_datasource_is_listed() {
        let found = |list: &str| {
            decide_after(|root| {
                root.write("run/cloud-init/enabled", "");
                root.write("run/cloud-init/cloud.cfg", list);
            })
        };
        assert_eq!(
            found("datasource_list: [ NoCloud, None ]\n"),
            Action::RunDsIdentify
        );
        assert_eq!(found("# datasource_list: [ LXD ]\n"), Action::RunDsIdentify);
        assert_eq!(found(""), Action::RunDsIdentify);
        for list in ["[ LXD, None ]", "[ NoCloud, LXD, None ]", "[LXD]"] {
            let found = found(&format!("datasource_list: {list}\n"));
            assert_eq!(found, Action::AlreadyListed, "{list}");
        }
    }

    #[test]
    fn ds_identify_runs_for_nocloud_if_only_lxd_is_listed() {
        let root = Root::booting();
        root.write("run/cloud-init/enabled", "");
        root.write(
            "run/cloud-init/cloud.cfg",
            "datasource_list: [ LXD, None ]\n",
        );
        assert_eq!(
            decide(root.path(), Datasource::NoCloud),
            Action::RunDsIdentify
        );
    }

    #[test]
    fn no_redetection_without_cloud_init() {
        for missing in ["etc/cloud", DS_IDENTIFY, GENERATORS[0]] {
            assert!(is_left_alone(|root| root.remove(missing)), "{missing}");
        }
    }

    #[test]
    fn no_redetection_without_systemd() {
        let decided = |change: fn(&Root)| {
            decide_after(|root| {
                root.remove("run/systemd/system");
                change(root);
            })
        };
        assert!(matches!(decided(|_| {}), Action::TooLate(_)));
        assert!(matches!(decided(|root| root.remove(RUN)), Action::None(_)));
        let list = |root: &Root| root.write("run/cloud-init/cloud.cfg", "datasource_list: [LXD]\n");
        assert_eq!(decided(list), Action::AlreadyListed);
        let off = |root: &Root| root.write("etc/cloud/cloud-init.disabled", "");
        assert!(matches!(decided(off), Action::None(_)));
    }

    #[test]
    fn no_redetection_if_the_files_of_the_datasource_are_missing() {
        for datasource in [Datasource::Lxd, Datasource::NoCloud] {
            let root = Root::booting();
            root.remove(datasource.paths()[0]);
            let action = decide(root.path(), datasource);
            assert!(
                matches!(action, Action::None(_)),
                "{datasource:?}: {action:?}"
            );
        }
    }

    #[test]
    fn a_seed_is_detected_at_either_path() {
        let root = Root::booting();
        let [path, other] = Datasource::NoCloud.paths() else {
            panic!("two paths");
        };
        root.remove(path);
        root.write(other, "");
        assert_eq!(
            decide(root.path(), Datasource::NoCloud),
            Action::RunGenerator
        );
    }

    #[test]
    fn no_redetection_if_cloud_init_is_disabled() {
        assert!(is_left_alone(
            |root| root.write("etc/cloud/cloud-init.disabled", "")
        ));
        let line = "quiet cloud-init=disabled root=/dev/vda\n";
        assert!(is_left_alone(|root| root.write("proc/cmdline", line)));
        let other = "quiet cloud-init=disabled-not\n";
        assert!(!is_left_alone(|root| root.write("proc/cmdline", other)));
    }

    #[test]
    fn no_second_redetection_and_none_after_cloud_init_has_begun() {
        assert!(is_left_alone(|root| root.write(MARKER, "")));
        let status = "run/cloud-init/status.json";
        let written = decide_after(|root| root.write(status, ""));
        let linked = decide_after(|root| {
            symlink("/nowhere", root.path().join(status)).unwrap();
        });
        assert!(matches!(
            (written, linked),
            (Action::TooLate(_), Action::TooLate(_))
        ));
    }
}
