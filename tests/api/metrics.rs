//! Numbers: in LXD's and Incus's shapes, and for Prometheus.

use std::{collections::BTreeMap, time::Duration};

use harness::{RawClient, TestAgent, eventually};
use serde_json::{Value, json};
use vsock_agent_protocol::{
    metrics::{IncusMetrics, LxdMetrics},
    version::Family,
};

use crate::wire::{ask, header};

async fn metrics(family: Family) -> Value {
    let agent = TestAgent::configured(|config| config.family = family);
    let reply = RawClient::new(&agent.socket()).get("/1.0/metrics").await;
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.body["metadata"].clone()
}

#[tokio::test]
async fn lxds_numbers_are_maps_by_device() {
    let value = metrics(Family::Lxd).await;
    let metrics: LxdMetrics = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(json!(metrics), value);
    assert!(metrics.cpu_seconds_total["cpu0"].cpu_seconds_idle > 0.0);
    assert!(metrics.network.contains_key("lo"));
    assert!(metrics.memory.memory_mem_total_bytes > 0);
    assert!(metrics.procs_total > 0);
    for key in metrics.filesystem.values() {
        assert!(
            key.filesystem_free_bytes <= key.filesystem_size_bytes,
            "{key:?}"
        );
    }
}

#[tokio::test]
async fn incuss_numbers_are_lists_with_the_device_in_them() {
    let value = metrics(Family::Incus).await;
    let metrics: IncusMetrics = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(json!(metrics), value);
    assert_eq!(metrics.cpu_seconds_total[0].cpu, "cpu0");
    assert!(metrics.network.iter().any(|of| of.device == "lo"));
    assert!(metrics.time_seconds > metrics.boot_time_seconds);
    assert!(metrics.boot_time_seconds > 0);
}

/// The numbers of a page by name and labels. Fails on a line that is not in the format.
fn parse(page: &str) -> BTreeMap<String, f64> {
    let mut numbers = BTreeMap::new();
    let mut typed = Vec::new();
    for line in page.lines() {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert!(matches!(kind, "counter" | "gauge"), "{line}");
            assert!(!typed.contains(&name), "{name} is there twice");
            typed.push(name);
        } else if !line.starts_with("# HELP ") {
            let (name, number) = line.rsplit_once(' ').unwrap();
            let number: f64 = number.parse().unwrap();
            assert!(number.is_finite() && number >= 0.0, "{line}");
            let family = name.split('{').next();
            assert_eq!(family, typed.last().copied(), "{line}");
            let before = numbers.insert(name.to_owned(), number);
            assert_eq!(before, None, "{line} is there twice");
        }
    }
    numbers
}

#[tokio::test]
async fn a_page_for_prometheus_has_the_names_its_users_know() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let (head, page) = ask(&client, "GET", "/metrics").await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let expected = "text/plain; version=0.0.4; charset=utf-8";
    assert_eq!(header(&head, "content-type"), Some(expected));
    let numbers = parse(&page);
    for name in [
        "node_boot_time_seconds",
        "node_cpu_seconds_total{cpu=\"0\",mode=\"idle\"}",
        "node_load1",
        "node_memory_MemAvailable_bytes",
        "node_memory_MemTotal_bytes",
        "node_network_receive_bytes_total{device=\"lo\"}",
        "node_time_seconds",
        "process_resident_memory_bytes",
        "vsock_agent_connections",
        "vsock_agent_port_forwards",
        "vsock_agent_sftp_sessions",
    ] {
        assert!(numbers.contains_key(name), "no {name} in\n{page}");
    }
    assert!(page.contains("\nnode_uname_info{"), "{page}");
    let version = env!("CARGO_PKG_VERSION");
    let build = format!("vsock_agent_build_info{{version=\"{version}\",family=\"lxd\"}}");
    assert_eq!(numbers[&build], 1.0);
    assert!(numbers["process_resident_memory_bytes"] > 1e6, "{page}");
}

#[tokio::test]
async fn commands_are_counted() {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    let count = async || {
        let numbers = parse(&ask(&client, "GET", "/metrics").await.1);
        (
            numbers["vsock_agent_commands_started_total"],
            numbers["vsock_agent_commands_running"],
        )
    };
    assert_eq!(count().await, (0.0, 0.0));
    let exec = client.exec(&["sleep", "1000"], json!({})).await;
    client.exec(&["true"], json!({})).await.wait().await;
    let one_runs = eventually(Duration::from_secs(5), async || count().await == (2.0, 1.0)).await;
    assert!(one_runs, "{:?}", count().await);
    let path = format!("/1.0/operations/{}", exec.id);
    client.request("DELETE", &path, "").await;
    exec.wait().await;
    let none_runs = eventually(Duration::from_secs(5), async || count().await == (2.0, 0.0)).await;
    assert!(none_runs, "{:?}", count().await);
}
