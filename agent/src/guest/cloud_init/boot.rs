//! What cloud-init has decided in this boot, and what can still be done about it.
//!
//! Its generator runs before any unit, so before the agent. It leaves `/run/cloud-init/enabled` or
//! `disabled`, and the datasources that it found in `/run/cloud-init/cloud.cfg`.

use std::{fs, path::Path};

use super::Datasource;

/// Where cloud-init keeps what it decided.
pub(super) const RUN: &str = "run/cloud-init";
/// The program that finds datasources.
pub(super) const DS_IDENTIFY: &str = "usr/lib/cloud-init/ds-identify";
/// Made before anything is done, so that it is done once a boot.
pub(super) const MARKER: &str = "run/vsock-agent-cloud-init";

/// Where the generator may be (`systemd.generator(7)`).
const GENERATORS: [&str; 2] = [
    "usr/lib/systemd/system-generators/cloud-init-generator",
    "lib/systemd/system-generators/cloud-init-generator",
];

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing, because.
    None(&'static str),
    /// Nothing in this boot, because.
    Late(&'static str),
    /// Nothing more: cloud-init looks there already.
    Found,
    /// Cloud-init will run, but must look for datasources again.
    Identify,
    /// Cloud-init will not run: its generator must decide again.
    Generate,
}

/// What the files below `root` say. systemd has to be asked too before
/// anything is done.
pub(super) fn decide(root: &Path, wanted: Datasource) -> Action {
    let has = |path: &str| root.join(path).exists();
    let is_systemd = is_systemd(root);
    let can_decide = || has(DS_IDENTIFY) && GENERATORS.into_iter().any(has);
    if !has("etc/cloud") || (is_systemd && !can_decide()) {
        return Action::None("there is no cloud-init");
    }
    if has("etc/cloud/cloud-init.disabled") || is_disabled_by_kernel(root) {
        return Action::None("cloud-init is switched off");
    }
    if !wanted.places().iter().copied().any(has) {
        return Action::None("the data are not where cloud-init looks");
    }
    let run = root.join(RUN);
    // Linked there at the start of its first stage, even before there is anything to link to.
    if fs::symlink_metadata(run.join("status.json")).is_ok() {
        return Action::Late("cloud-init has begun");
    }
    if has(MARKER) {
        return Action::None("it was done in this boot already");
    }
    let has_found = lists(&run.join("cloud.cfg"), wanted);
    match is_systemd {
        true if !run.join("enabled").exists() => Action::Generate,
        _ if has_found => Action::Found,
        true => Action::Identify,
        false if !run.exists() => Action::None("cloud-init has yet to look"),
        false => Action::Late("this system is not systemd's"),
    }
}

/// As `sd_booted(3)` finds out.
pub(super) fn is_systemd(root: &Path) -> bool {
    root.join("run/systemd/system").exists()
}

fn is_disabled_by_kernel(root: &Path) -> bool {
    let line = fs::read_to_string(root.join("proc/cmdline")).unwrap_or_default();
    line.split_ascii_whitespace()
        .any(|word| word == "cloud-init=disabled")
}

/// Whether a datasource is among those found: `datasource_list: [ NoCloud, LXD, None ]`.
fn lists(config: &Path, wanted: Datasource) -> bool {
    let text = fs::read_to_string(config).unwrap_or_default();
    let lists = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("datasource_list:"));
    lists
        .flat_map(|list| list.split(['[', ']', ',']))
        .any(|name| name.trim() == wanted.name())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::{super::fake::Root, *};

    /// What is decided in a root in which cloud-init found these, after `change`.
    fn decide_after(change: impl FnOnce(&Root)) -> Action {
        let root = Root::booting();
        change(&root);
        decide(root.path(), Datasource::Lxd)
    }

    fn is_left_alone(change: impl FnOnce(&Root)) -> bool {
        matches!(decide_after(change), Action::None(_))
    }

    #[test]
    fn a_generator_that_found_nothing_decides_again() {
        assert_eq!(decide_after(|_| {}), Action::Generate);
        // As after a kick that was cut off.
        assert_eq!(decide_after(|root| root.remove(RUN)), Action::Generate);
    }

    #[test]
    fn datasources_that_were_found_are_looked_for_again() {
        let found = |list: &str| {
            decide_after(|root| {
                root.write("run/cloud-init/enabled", "");
                root.write("run/cloud-init/cloud.cfg", list);
            })
        };
        assert_eq!(
            found("datasource_list: [ NoCloud, None ]\n"),
            Action::Identify
        );
        assert_eq!(found("# datasource_list: [ LXD ]\n"), Action::Identify);
        assert_eq!(found(""), Action::Identify);
        for list in ["[ LXD, None ]", "[ NoCloud, LXD, None ]", "[LXD]"] {
            let found = found(&format!("datasource_list: {list}\n"));
            assert_eq!(found, Action::Found, "{list}");
        }
    }

    #[test]
    fn the_seed_is_looked_for_by_its_own_name() {
        let root = Root::booting();
        root.write("run/cloud-init/enabled", "");
        root.write(
            "run/cloud-init/cloud.cfg",
            "datasource_list: [ LXD, None ]\n",
        );
        assert_eq!(decide(root.path(), Datasource::NoCloud), Action::Identify);
    }

    #[test]
    fn nothing_is_done_without_cloud_init() {
        for missing in ["etc/cloud", DS_IDENTIFY, GENERATORS[0]] {
            assert!(is_left_alone(|root| root.remove(missing)), "{missing}");
        }
    }

    #[test]
    fn without_systemd_a_look_that_is_over_is_not_done_again() {
        let decided = |change: fn(&Root)| {
            decide_after(|root| {
                root.remove("run/systemd/system");
                change(root);
            })
        };
        assert!(matches!(decided(|_| {}), Action::Late(_)));
        assert!(matches!(decided(|root| root.remove(RUN)), Action::None(_)));
        let list = |root: &Root| root.write("run/cloud-init/cloud.cfg", "datasource_list: [LXD]\n");
        assert_eq!(decided(list), Action::Found);
        let off = |root: &Root| root.write("etc/cloud/cloud-init.disabled", "");
        assert!(matches!(decided(off), Action::None(_)));
    }

    #[test]
    fn nothing_is_done_for_data_that_would_not_be_found() {
        for wanted in [Datasource::Lxd, Datasource::NoCloud] {
            let root = Root::booting();
            root.remove(wanted.places()[0]);
            let action = decide(root.path(), wanted);
            assert!(matches!(action, Action::None(_)), "{wanted:?}: {action:?}");
        }
    }

    #[test]
    fn a_seed_has_two_places() {
        let root = Root::booting();
        let [place, other] = Datasource::NoCloud.places() else {
            panic!("two places");
        };
        root.remove(place);
        root.write(other, "");
        assert_eq!(decide(root.path(), Datasource::NoCloud), Action::Generate);
    }

    #[test]
    fn nothing_is_done_when_it_is_switched_off() {
        assert!(is_left_alone(
            |root| root.write("etc/cloud/cloud-init.disabled", "")
        ));
        let line = "quiet cloud-init=disabled root=/dev/vda\n";
        assert!(is_left_alone(|root| root.write("proc/cmdline", line)));
        let other = "quiet cloud-init=disabled-not\n";
        assert!(!is_left_alone(|root| root.write("proc/cmdline", other)));
    }

    #[test]
    fn nothing_is_done_twice_or_too_late() {
        assert!(is_left_alone(|root| root.write(MARKER, "")));
        let status = "run/cloud-init/status.json";
        let written = decide_after(|root| root.write(status, ""));
        let linked = decide_after(|root| {
            symlink("/nowhere", root.path().join(status)).unwrap();
        });
        assert!(matches!(
            (written, linked),
            (Action::Late(_), Action::Late(_))
        ));
    }
}
