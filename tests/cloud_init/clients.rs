//! Programs that know Amazon's metadata service find it, as they are: botocore, Debian's
//! `ec2metadata` and Amazon's `ec2-metadata`. All of them use tokens.

use harness::cloud_init::metadata_clients;

use crate::{KEY, data, neighbours::seen};

const SCRIPT: &str = include_str!("clients.sh");

#[test]
fn programs_for_ec2_metadata_work() {
    let mut data = data("one");
    data.meta_data = data.meta_data.replace("here-1", "eu-west-1a");
    let said = seen(SCRIPT, data, &[metadata_clients()]);
    for line in [
        "botocore: eu-west-1",
        "debian: instance-id: one",
        "debian: local-hostname: guest-one",
        "debian: availability-zone: eu-west-1a",
        "debian: region: here",
        &format!("debian: public-keys: ['{KEY} ann']"),
        "amazon: instance-id: one",
        "amazon: placement: eu-west-1a",
        "amazon: keyname:key-0",
        "amazon: format:openssh-key",
        &format!("amazon: {KEY} ann"),
        "with two slashes: reservation-id: r-00000000",
    ] {
        assert!(said.iter().any(|own| own == line), "{line}: {said:#?}");
    }
}
