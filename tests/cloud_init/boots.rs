//! Boots with LXD's socket and with seeds: what cloud-init finds by which hint, first and later
//! boots, and a host that is away.

use harness::{
    HostData, MockHost,
    cloud_init::{Hints, RELEASES, Release},
};

use crate::{boot, data, guest, has_data, hints};

#[test]
fn cloud_init_releases_detect_the_lxd_datasource() {
    let both = hints("lxd");
    for (release, hints, expected) in [
        (Release::Debian12, both.clone(), "LXD, None"),
        (Release::Current, both.clone(), "LXD, None"),
        (Release::Debian12, both.clone().without("board"), ""),
        (Release::Current, both.clone().without("board"), "LXD, None"),
        (
            Release::Debian12,
            both.clone().without("ports"),
            "LXD, None",
        ),
        (Release::Current, both.without("ports"), ""),
    ] {
        let (guest, _host) = guest(release, data("one"));
        let booted = boot(&guest, &hints, &[]);
        let what = format!("{release:?}, {hints:?}: {}", booted.story());
        assert_eq!(booted.found_first(), expected, "{what}");
        // Without a hint, the agent has it look again.
        assert_eq!(booted.found(), "LXD, None", "{what}");
        booted.is_done_by("DataSourceLXD", "lxd");
        has_data(&guest, &booted, "one");
    }
}

#[test]
fn cloud_init_finds_nocloud_seeds() {
    for release in RELEASES {
        for hints in [hints("nocloud"), Hints::default()] {
            let (guest, _host) = guest(release, data("one"));
            let agent = ["--cloud-init", "nocloud", "--guest-socket", "off"];
            let booted = boot(&guest, &hints, &agent);
            assert_eq!(booted.found(), "NoCloud, None", "{}", booted.story());
            booted.is_done_by("DataSourceNoCloud", "nocloud");
            has_data(&guest, &booted, "one");
        }
    }
}

#[test]
fn new_instance_id_makes_cloud_init_run_again() {
    for release in RELEASES {
        let (guest, host) = guest(release, data("one"));
        let hints = hints("lxd");
        let boot = || boot(&guest, &hints, &[]);
        has_data(&guest, &boot(), "one");
        let second = boot();
        second.is_done_by("DataSourceLXD", "lxd");
        // The same instance: nothing is done again.
        has_data(&guest, &second, "one");
        host.change(|data| data.meta_data = crate::data("two").meta_data);
        let third = boot();
        third.is_done_by("DataSourceLXD", "lxd");
        assert_eq!(guest.read("root/ran"), "ran\nran\n", "{}", third.story());
        assert_eq!(third.read("hostname").trim(), "guest-two");
    }
}

#[test]
fn guest_boots_without_its_host() {
    for release in RELEASES {
        let guest = harness::cloud_init::Guest::new(release);
        let first = boot(&guest, &hints("lxd"), &[]);
        let log = first.read("agent.log");
        assert!(log.contains("the boot continues without"), "{log}");
        assert!(!guest.disk().join("root/said").exists());
        // It is there for the next one.
        let _host = MockHost::start(&guest.host_socket(), data("one"));
        let second = boot(&guest, &hints("lxd"), &[]);
        second.is_done_by("DataSourceLXD", "lxd");
        has_data(&guest, &second, "one");
    }
}

#[test]
fn failing_host_request_yields_no_partial_seed() {
    for path in [
        "/1.0/meta-data",
        "/1.0/config",
        "/1.0/devices",
        "/1.0/config/cloud-init.user-data",
    ] {
        let mut data: HostData = data("one");
        data.failing.insert(path.to_owned(), 500);
        let (guest, host) = guest(Release::Debian12, data);
        let booted = boot(&guest, &hints("lxd"), &[]);
        assert!(!guest.disk().join("root/said").exists(), "{path}");
        assert_ne!(booted.cloud_id(), "lxd", "{path}: {}", booted.story());
        assert!(host.log().iter().any(|line| line.contains(path)));
    }
}
