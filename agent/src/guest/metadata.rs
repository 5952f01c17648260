//! Serves the instance data by the metadata services of [`vsock_agent_metadata`]: accepts and limits their
//! connections, and speaks HTTP.
//!
//! Has access to the instance data only. Off unless the configuration names a preset.

use std::{path::PathBuf, sync::Arc};

use futures_util::future::BoxFuture;
use http::Request;
use hyper::body::Incoming;
use serde_json::{Map, Value};
use tokio::{
    net::TcpStream,
    select,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{
    either::Either,
    sync::{CancellationToken, DropGuard},
};
use vsock_agent_metadata::{AddressError, Instance, PresetConfig, Service, ServiceListener};
use vsock_agent_transport::{Admission, Stream};

use crate::{
    defaults,
    guest::instance_data::{InstanceData, Snapshot},
    http::{
        connection,
        reply::{ApiError, Reply, full},
    },
    shutdown::Shutdown,
};

/// The configured metadata services. [`MetadataServices::open`] opens their sockets.
#[derive(Debug)]
pub(crate) struct MetadataServices {
    config: PresetConfig,
    data: InstanceData,
    root: PathBuf,
    shutdown: Shutdown,
    /// The logged warnings about unsupported keys.
    logged: Vec<String>,
}

/// Open services. Closed on drop.
#[derive(Debug)]
pub(crate) struct OpenServices(#[expect(dead_code, reason = "held for its `Drop`")] DropGuard);

/// One open service.
#[derive(Debug)]
struct Served {
    service: Service,
    data: InstanceData,
    root: PathBuf,
    connections: Arc<Admission>,
    shutdown: Shutdown,
}

impl Instance for Snapshot {
    fn config(&self, key: &str) -> Option<&str> {
        self.config.get(key).map(String::as_str)
    }

    fn meta_data(&self) -> &str {
        &self.meta_data
    }

    fn devices(&self) -> &Map<String, Value> {
        &self.devices
    }
}

impl MetadataServices {
    /// `root` is the guest's `/`.
    pub(crate) const fn new(
        config: PresetConfig,
        data: InstanceData,
        root: PathBuf,
        shutdown: Shutdown,
    ) -> Self {
        Self {
            config,
            data,
            root,
            shutdown,
            logged: Vec::new(),
        }
    }

    /// Logs the keys of the snapshot that a service does not support. Repeated warnings are skipped.
    pub(crate) fn log_unsupported_keys(&mut self, snapshot: &Snapshot) {
        let unsupported = self.config.presets.iter().flat_map(|preset| {
            let keys = preset.unsupported(snapshot).into_iter();
            keys.map(|key| {
                let name = preset.name();
                format!("the metadata service {name} does not support {key}")
            })
        });
        let unsupported: Vec<_> = unsupported.collect();
        for text in unsupported
            .iter()
            .filter(|text| !self.logged.contains(text))
        {
            tracing::warn!("{text}");
        }
        self.logged = unsupported;
    }

    /// Assigns the addresses to the loopback device and serves them. Errors are logged. A service whose
    /// address or port is in use retries every [`defaults::LISTEN_RETRY`].
    pub(crate) async fn open(&self) -> OpenServices {
        let stop = self.shutdown.child_token();
        let mut taken = Vec::new();
        for preset in &self.config.presets {
            let name = preset.name();
            if taken.contains(&preset.address()) {
                tracing::error!(preset = name, "another preset has this address and port");
                continue;
            }
            taken.push(preset.address());
            let Some(service) = Service::new(Arc::clone(preset), &self.config) else {
                tracing::error!("no random numbers for tokens");
                break;
            };
            let served = Arc::new(Served {
                service,
                data: self.data.clone(),
                root: self.root.clone(),
                connections: Admission::new(defaults::METADATA),
                shutdown: self.shutdown.clone(),
            });
            let first = served.service.listen(&self.root).await;
            if let Err(error) = &first {
                let cause = std::error::Error::source(error).map(ToString::to_string);
                tracing::error!(preset = name, %error, cause, "cannot serve metadata");
            }
            if !matches!(first, Err(AddressError::RealCloud(_))) {
                self.shutdown.spawn(served.run(first.ok(), stop.clone()));
            }
        }
        OpenServices(stop.drop_guard())
    }
}

impl Served {
    /// Serves `listener`, or retries until there is one, until `stop` is cancelled.
    async fn run(self: Arc<Self>, mut listener: Option<ServiceListener>, stop: CancellationToken) {
        let listener = loop {
            if let Some(listener) = listener {
                break listener;
            }
            select! {
                () = sleep(defaults::LISTEN_RETRY) => {}
                () = stop.cancelled() => return,
            }
            listener = self.service.listen(&self.root).await.ok();
        };
        select! {
            () = self.accept_all(Arc::new(listener), stop.clone()) => {}
            () = stop.cancelled() => {}
        }
    }

    async fn accept_all(self: Arc<Self>, listener: Arc<ServiceListener>, stop: CancellationToken) {
        let unknown = Arc::new(Semaphore::new(defaults::MAX_GUEST_CONNECTIONS));
        loop {
            let Ok(permit) = Arc::clone(&unknown).acquire_owned().await else {
                return;
            };
            let (stream, peer) = listener.accept().await;
            let (served, listener, stop) = (Arc::clone(&self), Arc::clone(&listener), stop.clone());
            self.shutdown.spawn(async move {
                let is_admitted = served.service.admits(&listener, &stream, peer).await;
                drop((listener, permit));
                if is_admitted {
                    served.serve_connection(stream, stop).await;
                }
            });
        }
    }

    async fn serve_connection(self: Arc<Self>, stream: TcpStream, stop: CancellationToken) {
        let stream = stream.into_std();
        let Ok(stream) = stream.and_then(|stream| Stream::new(stream.into())) else {
            return;
        };
        let Some(permit) = self.connections.enter(false).await else {
            return;
        };
        let answer = |request: Request<Incoming>| -> BoxFuture<'static, Reply> {
            let reply = match self.data.snapshot() {
                None => ApiError::not_found("no instance data").into_plain_reply(),
                Some(snapshot) => self.service.answer(&request, &*snapshot).map(full),
            };
            let (preset, status) = (self.service.name(), reply.status().as_u16());
            tracing::debug!(preset, status, "request for metadata");
            Box::pin(std::future::ready(reply))
        };
        let stream = Either::Left(stream);
        let serving = connection::serve(stream, stop, &answer);
        let serving = timeout(defaults::GUEST_CONNECTION_TIMEOUT, serving);
        match permit.wait_for(defaults::METADATA_GRACE, serving).await {
            Some(Ok(Err(error))) => tracing::debug!(%error, "a guest's connection ended"),
            None => tracing::debug!("a guest's connection was closed for a newer one"),
            Some(_) => {}
        }
    }
}
