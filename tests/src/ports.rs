//! Ports for servers that cannot be told to take any.

use std::{
    net::{Ipv4Addr, TcpListener},
    sync::atomic::{AtomicU16, Ordering},
};

/// A port of the loopback that is free and nobody else gets: below those that the kernel gives to
/// whoever asks for any (32768 and more, `ip_local_port_range` in the kernel's ip-sysctl.rst), and
/// each once in a process.
///
/// # Panics
///
/// When there is none.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(port < 32_768, "no free port");
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
