//! HTTP over vsock and Unix sockets: listeners, TLS, connections, replies and websockets.

pub(crate) mod client;
pub(crate) mod connection;
pub(crate) mod event_stream;
pub(crate) mod http2;
pub(crate) mod identity;
pub(crate) mod listen;
pub(crate) mod query;
pub(crate) mod reply;
pub(crate) mod ws;
