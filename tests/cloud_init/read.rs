//! What cloud-init reads from the socket is what the host has.

use harness::{HostData, MockHost, TestAgent, cloud_init::RELEASES};
use serde_json::{Value, json};

/// What every cloud-init reads from an agent whose host has this.
fn read(data: HostData) -> Value {
    let mut agent = TestAgent::configured(|config| {
        let socket = config.guest.sockets[0].with_file_name("host.sock");
        config.guest.host = Some(format!("unix:{}", socket.display()).parse().unwrap());
    });
    let _host = MockHost::start(&agent.folder().join("host.sock"), data);
    agent.wait_until_ready();
    let [first, second] = RELEASES.map(|release| release.read_lxd(&agent.guest_socket()));
    assert!(first == second, "{first} and {second}");
    first
}

#[test]
fn cloud_init_reads_the_whole_instance() {
    let user_data = "#cloud-config\nhostname: zürich\n";
    let mut data = HostData::with(&[
        ("cloud-init.user-data", user_data),
        ("user.user-data", "#cloud-config\nhostname: old\n"),
        ("cloud-init.vendor-data", "#cloud-config\n{}\n"),
        ("cloud-init.network-config", "version: 2\nethernets: {}\n"),
        ("user.special-key", "value"),
    ]);
    data.unset.push("user.network-config".to_owned());
    let devices = data.devices.clone();
    let read = read(data);
    assert_eq!(read["user-data"], json!(user_data));
    assert_eq!(read["vendor-data"], json!("#cloud-config\n{}\n"));
    assert_eq!(read["config"]["user.special-key"], json!("value"));
    assert_eq!(read["devices"], devices);
    assert!(
        read["meta-data"].to_string().contains("instance-id"),
        "{read}"
    );
    assert!(
        read["network-config"].to_string().contains("version"),
        "{read}"
    );
}

#[test]
fn cloud_init_keeps_short_text_values() {
    let read = read(HostData::with(&[
        ("user.price", "€5"),
        ("user.snow", "☃ ok"),
    ]));
    assert_eq!(read["config"]["user.price"], json!("€5"));
    assert_eq!(read["config"]["user.snow"], json!("☃ ok"));
}

#[test]
fn a_thousand_keys_and_a_mebibyte_arrive() {
    let user_data = format!("#cloud-config\n# {}\n", "é".repeat(512 * 1024));
    let mut data = HostData::with(&[("cloud-init.user-data", &user_data)]);
    for number in 0..1000 {
        data.config
            .insert(format!("user.key{number}"), number.to_string());
    }
    let read = read(data);
    assert_eq!(read["config"].as_object().unwrap().len(), 1001);
    assert!(read["user-data"] == json!(user_data));
}
