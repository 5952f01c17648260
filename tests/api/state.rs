//! The guest's state, as LXD's and Incus's hosts read it.

use std::collections::BTreeSet;

use harness::{RawClient, TestAgent};
use serde_json::{Value, json};
use vsock_agent_protocol::version::Family;

async fn state(family: Family) -> Value {
    let agent = TestAgent::configured(|config| config.family = family);
    let reply = RawClient::new(&agent.socket()).get("/1.0/state").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.body["metadata"].clone()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    let object = value.as_object().unwrap_or_else(|| panic!("{value}"));
    object.keys().map(String::as_str).collect()
}

#[tokio::test]
async fn lxds_state_has_every_key() {
    let state = state(Family::Lxd).await;
    let all = "cpu disk memory network pid processes status status_code";
    assert_eq!(keys(&state), all.split(' ').collect());
    assert_eq!(keys(&state["cpu"]), BTreeSet::from(["usage"]));
    let memory = "swap_usage swap_usage_peak total usage usage_peak";
    assert_eq!(keys(&state["memory"]), memory.split(' ').collect());
    assert_eq!(
        (&state["status"], &state["status_code"]),
        (&json!(""), &json!(0))
    );
    assert_eq!((&state["disk"], &state["pid"]), (&Value::Null, &json!(1)));
    assert!(state["processes"].as_i64().unwrap() > 1, "{state}");
    let memory = |key: &str| state["memory"][key].as_i64().unwrap();
    assert!(
        0 < memory("usage") && memory("usage") <= memory("total"),
        "{state}"
    );
    assert!(state["cpu"]["usage"].as_i64().unwrap() >= -1, "{state}");
}

#[tokio::test]
async fn the_loopback_is_described_whole() {
    let state = state(Family::Lxd).await;
    let loopback = &state["network"]["lo"];
    let all = "addresses counters host_name hwaddr mtu state type";
    assert_eq!(keys(loopback), all.split(' ').collect());
    let counters = "bytes_received bytes_sent errors_received errors_sent \
                    packets_dropped_inbound packets_dropped_outbound packets_received packets_sent";
    assert_eq!(
        keys(&loopback["counters"]),
        counters.split_ascii_whitespace().collect()
    );
    assert_eq!(loopback["type"], json!("loopback"));
    assert_eq!(
        (&loopback["hwaddr"], &loopback["host_name"]),
        (&json!(""), &json!(""))
    );
    if loopback["state"] == json!("up") {
        let address = json!({
            "family": "inet", "address": "127.0.0.1", "netmask": "8", "scope": "local",
        });
        let addresses = loopback["addresses"].as_array().unwrap();
        assert!(addresses.contains(&address), "{loopback}");
    }
}

#[tokio::test]
async fn incus_hears_more() {
    let state = state(Family::Incus).await;
    assert_eq!(state["cpu"]["allocated_time"], json!(0));
    let os = "fqdn hostname kernel_version os os_version";
    assert_eq!(keys(&state["os_info"]), os.split(' ').collect());
    let booted = state["started_at"].as_str().unwrap();
    assert!(
        booted.starts_with("20") && booted.ends_with('Z'),
        "{booted}"
    );
}

#[tokio::test]
async fn a_state_cannot_be_set() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let reply = client.request("PUT", "/1.0/state", "{}").await;
    assert_eq!(reply.status, 501);
    assert_eq!(reply.body["error"], json!("not implemented"));
    assert_eq!(reply.body["error_code"], json!(501));
}
