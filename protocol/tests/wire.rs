//! Each type against frozen JSON: a change here is a change of the protocol.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::time::Duration;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use vsock_agent_protocol::{
    envelope::Envelope,
    event::Event,
    exec::{ControlMessage, ExecEnded, ExecRequest, ExecStarted, OnDisconnect},
    guest_api::{ConfigChange, DeviceChange, Devices, GuestInfo, GuestState, StateReport},
    host::HostConnection,
    metrics::{IncusMetrics, LxdMetrics},
    operation::Operation,
    port_forward::PortForward,
    server_info::ServerInfo,
    state::InstanceState,
    version::Family,
};

/// Reads the JSON, writes it again, and expects the same.
fn check<T: Serialize + DeserializeOwned>(text: &str) -> T {
    let frozen: Value = serde_json::from_str(text).unwrap();
    let value: T = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_value(&value).unwrap(), frozen);
    value
}

#[test]
fn exec_request_matches_lxds_fixture() {
    let request: ExecRequest = check(include_str!("wire/exec_request.json"));
    assert_eq!(request.command, ["sh", "-c", "echo hi"]);
    assert_eq!(request.user_name, None);
}

#[test]
fn exec_request_with_user_name() {
    let request: ExecRequest = check(include_str!("wire/exec_request_named_user.json"));
    assert_eq!(request.user_name.as_deref(), Some("ann"));
}

#[test]
fn exec_request_with_on_disconnect() {
    let request: ExecRequest = check(include_str!("wire/exec_request_keep.json"));
    assert_eq!(request.on_disconnect, OnDisconnect::Keep);
}

#[test]
fn exec_request_with_time_limits() {
    let request: ExecRequest = check(include_str!("wire/exec_request_times.json"));
    assert_eq!(request.time_limit(), Some(Duration::from_millis(1500)));
    assert_eq!(request.kill_pause(), Some(Duration::ZERO));
}

#[test]
fn exec_started_has_the_secrets() {
    let started: ExecStarted = check(include_str!("wire/exec_started.json"));
    assert_eq!(started.fds["control"], "bb");
}

#[test]
fn exec_ended_has_the_exit_status() {
    let ended: ExecEnded = check(include_str!("wire/exec_ended.json"));
    assert_eq!((ended.exit_code, ended.signal), (143, Some(15)));
    let lxd: ExecEnded = check(include_str!("wire/exec_ended_lxd.json"));
    assert_eq!((lxd.exit_code, lxd.bytes), (-1, None));
    let not_started: ExecEnded = check(include_str!("wire/exec_not_started.json"));
    assert_eq!(not_started.start_error.as_deref(), Some("not-found"));
}

#[test]
fn control_messages_match_lxds_fixtures() {
    let resize: ControlMessage = check(include_str!("wire/control_resize.json"));
    assert_eq!(
        resize,
        ControlMessage::WindowResize {
            width: 120,
            height: 40
        }
    );
    let signal: ControlMessage = check(include_str!("wire/control_signal.json"));
    assert_eq!(signal, ControlMessage::Signal(15));
}

#[test]
fn operation_matches_lxds_fixture() {
    let operation: Operation = check(include_str!("wire/operation.json"));
    assert!(!operation.is_final());
}

#[test]
fn envelopes_have_all_seven_keys() {
    check::<Envelope<Value>>(include_str!("wire/envelope_sync.json"));
    check::<Envelope<Value>>(include_str!("wire/envelope_async.json"));
    check::<Envelope<()>>(include_str!("wire/envelope_error.json"));
}

#[test]
fn event_omits_empty_fields() {
    check::<Event>(include_str!("wire/event.json"));
}

#[test]
fn server_info_has_the_keys_that_hosts_read() {
    let info: ServerInfo = check(include_str!("wire/server_info.json"));
    assert!(info.has("container_exec_recording"));
}

#[test]
fn host_connection_has_both_families_keys() {
    let lxd = include_str!("wire/host_connection.json");
    let connection: HostConnection = check(lxd);
    assert_eq!(
        connection.to_json(Family::Lxd),
        serde_json::from_str::<Value>(lxd).unwrap()
    );
    let incus = include_str!("wire/host_connection_incus.json");
    let connection: HostConnection = serde_json::from_str(incus).unwrap();
    assert!(connection.devlxd);
    assert_eq!(
        connection.to_json(Family::Incus),
        serde_json::from_str::<Value>(incus).unwrap()
    );
}

#[test]
fn state_has_the_keys_of_lxd_and_incus() {
    let lxd: InstanceState = check(include_str!("wire/state_lxd.json"));
    assert_eq!(lxd.os_info, None);
    let incus: InstanceState = check(include_str!("wire/state_incus.json"));
    assert_eq!(incus.cpu.allocated_time, Some(0));
}

#[test]
fn metrics_have_lxds_and_incuss_shape() {
    let lxd: LxdMetrics = check(include_str!("wire/metrics_lxd.json"));
    let incus: IncusMetrics = check(include_str!("wire/metrics_incus.json"));
    assert_eq!(LxdMetrics::from(incus), lxd);
}

#[test]
fn port_forward_defaults_to_the_loopback() {
    let full: PortForward = check(include_str!("wire/port_forward.json"));
    let short: PortForward = serde_json::from_str(r#"{"port":80}"#).unwrap();
    assert_eq!(short, full);
}

#[test]
fn guest_metadata_has_old_and_new_keys() {
    let lxd: GuestInfo = check(include_str!("wire/guest_info.json"));
    assert_eq!(lxd.other["auth"], "untrusted");
    let old: GuestInfo = check(include_str!("wire/guest_info_5_0.json"));
    assert_eq!((old.state.as_str(), old.other.len()), ("", 0));
    let ours = GuestInfo::new("none".to_owned(), GuestState::Ready);
    check::<GuestInfo>(&serde_json::to_string(&ours).unwrap());
    let report: StateReport = check(r#"{"state":"Ready"}"#);
    assert_eq!(report.state, GuestState::Ready);
}

#[test]
fn devices_and_device_events_match_lxds_fixtures() {
    let devices: Devices = check(include_str!("wire/guest_devices.json"));
    assert_eq!(devices["eth0"]["hwaddr"], "00:16:3e:00:00:01");
    let change: ConfigChange = check(include_str!("wire/config_change.json"));
    assert_eq!(change.value, "b");
    let change: DeviceChange = check(include_str!("wire/device_change.json"));
    assert_eq!(change.config["type"], "nic");
}
