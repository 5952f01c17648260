//! `POST /1.0/exec` and `/1.0/exec-stream`: create an operation that runs a command.

use std::{collections::BTreeMap, fmt, sync::Arc};

use http::{Request, StatusCode, Version};
use hyper::body::Incoming;
use serde_json::json;
use tokio::{
    select,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use vsock_agent_protocol::{
    exec::{
        CONTROL, EXIT_SIGNAL_BASE, ExecEnded, ExecRequest, ExecStarted, STDERR, STDIN, STDOUT,
        Secret, stream::Frame,
    },
    operation::{OperationId, OperationStatus},
    path,
    printable::with_causes,
};

use crate::by_insertion::by_insertion;
use crate::{
    app::App,
    defaults,
    exec::{
        AgentUser, ClientIo, Ended, ExecPolicy, ExecSpec, Requests, Sockets, SpecError, StopTokens,
        StreamEnds,
    },
    http::{
        client::{self, Client},
        reply::{ApiError, Reply, operation_created, parse_json, read_json, stream},
        ws::{self, WebSocket},
    },
    operation::{Handle, New, Outcome, random_secret},
    shutdown::Shutdown,
    system::accounts::Accounts,
};

/// The description of a command's operation: LXD's.
const DESCRIPTION: &str = "Executing command";

/// Maximum length of an error text, in characters: it contains the name of the program.
const MAX_ERROR_CHARS: usize = 1000;

/// Maximum length of the name of a program in the log and in a shortened command, in characters.
const MAX_NAME_CHARS: usize = 200;

/// Creates an operation whose command starts when its websockets are connected.
///
/// # Errors
///
/// 400 for an invalid request, 403 for another user when the agent is not root, 503 when there are too many
/// commands.
pub(crate) async fn post(app: &Arc<App>, request: Request<Incoming>) -> Result<Reply, ApiError> {
    let client = client::of(&request);
    let mut request: ExecRequest = read_json(request.into_body()).await?;
    if !request.wait_for_websocket {
        return Err(ApiError::bad_request(
            "websockets are required: set wait-for-websocket",
        ));
    }
    let (spec, who) = prepare(app, client, &mut request).await?;
    let secrets = secrets(request.interactive)?;
    let mut started = ExecStarted::new(shown(&request.command), request.interactive);
    let new = New {
        class: "websocket",
        description: DESCRIPTION,
        metadata: json!(started),
        sockets: secrets.clone(),
        on_end: None,
    };
    let work = |handle| run(Arc::clone(app), Arc::clone(&spec), who, handle);
    let mut operation = app.operations.start(new, work)?;
    started.command = request.command;
    started.fds = by_insertion(secrets);
    started.environment = spec.environment();
    operation.metadata = json!(started);
    Ok(operation_created(path::operation(operation.id), operation))
}

/// `POST /1.0/exec-stream`: runs a command whose streams are the bodies of the request and of the reply.
///
/// # Errors
///
/// 505 without HTTP/2, 408 when the request does not arrive, and those of [`post`].
pub(crate) async fn post_stream(
    app: &Arc<App>,
    request: Request<Incoming>,
) -> Result<Reply, ApiError> {
    if request.version() != Version::HTTP_2 {
        let text = "a command on one stream needs HTTP/2";
        return Err(ApiError::new(StatusCode::HTTP_VERSION_NOT_SUPPORTED, text));
    }
    let client = client::of(&request);
    let mut frames = Requests::new(request.into_body());
    let mut request = read_request(&mut frames).await?;
    let (spec, who) = prepare(app, client, &mut request).await?;
    let (ends, body, finish) = StreamEnds::new(frames);
    let new = New {
        class: "task",
        description: DESCRIPTION,
        metadata: json!(ExecStarted::new(
            shown(&request.command),
            request.interactive
        )),
        sockets: Vec::new(),
        on_end: Some(Box::new(|operation| {
            // Fails only for a map whose keys are not strings; there is none.
            finish.finish(serde_json::to_vec(operation).unwrap_or_default());
        })),
    };
    let work = |handle: Handle| {
        let client = ClientIo::Stream(Box::new(ends));
        run_command(Arc::clone(app), spec, who, handle.into(), client)
    };
    let operation = app.operations.start(new, work)?;
    Ok(stream(&path::operation(operation.id), body))
}

/// The first frame of a command on one stream.
async fn read_request(frames: &mut Requests) -> Result<ExecRequest, ApiError> {
    let first = timeout(defaults::BODY_DEADLINE, frames.next());
    match first.await {
        Err(_) => {
            let text = "the request arrives too slowly";
            Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, text))
        }
        Ok(Ok(Some(Frame::Request(json)))) => parse_json(&json),
        Ok(Ok(_)) => Err(ApiError::bad_request("the first frame is no request")),
        Ok(Err(error)) => Err(ApiError::bad_request(error.to_string())),
    }
}

/// Applies the policy to a request, and resolves it.
async fn prepare(
    app: &App,
    client: Option<Arc<Client>>,
    request: &mut ExecRequest,
) -> Result<(Arc<ExecSpec>, Who), ApiError> {
    let policy = app.policy();
    policy.exec.restrict(request);
    let spec = resolve(&policy.exec, request).await?;
    let program = request.command.first();
    let who = Who {
        client,
        uid: spec.uid(),
        program: program.map(|name| cut(name)).unwrap_or_default(),
    };
    Ok((spec, who))
}

/// The command in the operation's metadata: of one above [`defaults::MAX_SHOWN_COMMAND_BYTES`] the program
/// alone.
fn shown(command: &[String]) -> Vec<String> {
    // In JSON each argument has two quotation marks and a comma.
    let bytes: usize = command.iter().map(|argument| argument.len() + 3).sum();
    if bytes <= defaults::MAX_SHOWN_COMMAND_BYTES {
        command.to_vec()
    } else {
        command.iter().take(1).map(|name| cut(name)).collect()
    }
}

async fn resolve(policy: &ExecPolicy, request: &ExecRequest) -> Result<Arc<ExecSpec>, ApiError> {
    let accounts = Accounts::current().await.map_err(|error| {
        let status = StatusCode::INTERNAL_SERVER_ERROR;
        ApiError::new(
            status,
            format!("cannot read the users of the guest: {error}"),
        )
    })?;
    let agent = AgentUser::unless_root();
    let spec =
        ExecSpec::resolve(request, &accounts, agent.as_ref()).map_err(|error| match error {
            SpecError::NotRoot => ApiError::forbidden(error.to_string()),
            error => ApiError::bad_request(error.to_string()),
        })?;
    match policy.check(request, &spec, &accounts) {
        Ok(()) => Ok(Arc::new(spec)),
        Err(refused) => {
            tracing::warn!(program = request.command.first(), %refused, "a command was refused");
            Err(ApiError::forbidden(refused.to_string()))
        }
    }
}

fn secrets(interactive: bool) -> Result<Vec<(String, Secret)>, ApiError> {
    let names: &[&str] = if interactive {
        &[CONTROL, STDIN]
    } else {
        &[CONTROL, STDIN, STDOUT, STDERR]
    };
    names
        .iter()
        .map(|name| Ok(((*name).to_owned(), random_secret()?)))
        .collect::<Result<_, crate::operation::NoRandomness>>()
        .map_err(|error| ApiError::busy(error.to_string()))
}

/// The task of the operation: waits for the websockets, runs the command, returns the outcome.
async fn run(app: Arc<App>, spec: Arc<ExecSpec>, who: Who, mut handle: Handle) -> Outcome {
    let (_, no_sockets) = tokio::sync::mpsc::channel(1);
    let sockets = std::mem::replace(&mut handle.sockets, no_sockets);
    let tokens = Tokens::from(handle);
    let sockets = select! {
        joined = timeout(defaults::JOIN_TIMEOUT, join(sockets, spec.is_interactive())) => joined,
        () = tokens.cancel.cancelled() => {
            return without_result(OperationStatus::Cancelled, "cancelled before it started");
        }
        () = tokens.stopping.cancelled() => {
            let why = "the agent was stopped before it started";
            return without_result(OperationStatus::Failure, why);
        }
    };
    let Ok(Some(sockets)) = sockets else {
        let why = "Timed out waiting for websockets to connect";
        return without_result(OperationStatus::Failure, why);
    };
    run_command(
        app,
        spec,
        who,
        tokens,
        ClientIo::Websockets(Box::new(sockets)),
    )
    .await
}

/// The id of an operation, and what ends it.
struct Tokens {
    id: OperationId,
    cancel: CancellationToken,
    stopping: CancellationToken,
}

impl From<Handle> for Tokens {
    fn from(handle: Handle) -> Self {
        Self {
            id: handle.id,
            cancel: handle.cancel,
            stopping: handle.stopping,
        }
    }
}

/// Runs the command, and closes its websockets.
async fn run_command(
    app: Arc<App>,
    spec: Arc<ExecSpec>,
    who: Who,
    tokens: Tokens,
    client: ClientIo,
) -> Outcome {
    let Tokens {
        id,
        cancel,
        stopping,
    } = tokens;
    let start = Instant::now();
    tracing::info!(%id, %who, interactive = spec.is_interactive(), "a command starts");
    let stops = StopTokens {
        cancel: cancel.clone(),
        stopping,
        end_on_stop: app.end_commands,
    };
    let (ended, sockets) = app.commands.run(&id.to_string(), spec, client, stops).await;
    let seconds = start.elapsed().as_secs_f32();
    tracing::info!(%id, %who, seconds, ?ended, "a command ended");
    close(&app.shutdown, sockets);
    outcome(ended, &cancel)
}

/// The client, the user and the program, for the log. Arguments are left out: they may be secrets.
struct Who {
    client: Option<Arc<Client>>,
    uid: u32,
    program: String,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(client) = &self.client {
            write!(f, "{client} ")?;
        }
        write!(f, "as user {}: {:?}", self.uid, self.program)
    }
}

/// A name, shortened to [`MAX_NAME_CHARS`].
fn cut(name: &str) -> String {
    name.chars().take(MAX_NAME_CHARS).collect()
}

/// Waits until all required websockets are connected. As in LXD, a command without a terminal needs no
/// control websocket. `None` if the operation accepts no more.
async fn join(
    mut sockets: tokio::sync::mpsc::Receiver<(String, WebSocket)>,
    interactive: bool,
) -> Option<Sockets> {
    let mut named = BTreeMap::new();
    let needed: &[&str] = if interactive {
        &[CONTROL, STDIN]
    } else {
        &[STDIN, STDOUT, STDERR]
    };
    while !needed.iter().all(|name| named.contains_key(*name)) {
        let (name, socket) = sockets.recv().await?;
        named.insert(name, socket);
    }
    Some(Sockets {
        control: named.remove(CONTROL),
        later: sockets,
        stdin: named.remove(STDIN)?,
        outputs: named.remove(STDOUT).zip(named.remove(STDERR)),
    })
}

fn without_result(status: OperationStatus, why: &str) -> Outcome {
    Outcome {
        status,
        metadata: serde_json::Value::Null,
        error: why.to_owned(),
    }
}

fn outcome(ended: Ended, cancel: &CancellationToken) -> Outcome {
    let unless_cancelled = |status| {
        if cancel.is_cancelled() {
            OperationStatus::Cancelled
        } else {
            status
        }
    };
    match ended {
        Ended::Exited {
            code,
            signal,
            output_complete,
            bytes,
            input_lost,
            timed_out,
        } => {
            let mut result = ExecEnded::default();
            // LXD's hosts evaluate the exit code only.
            result.exit_code = if input_lost.is_some() && code == 0 {
                EXIT_SIGNAL_BASE + libc::SIGHUP
            } else {
                code
            };
            result.signal = signal;
            result.output_complete = Some(output_complete);
            result.bytes = Some(by_insertion(
                bytes.into_iter().map(|(name, n)| (name.to_owned(), n)),
            ));
            result.timed_out = timed_out;
            result.input_lost = input_lost.as_ref().map(|lost| lost.after);
            Outcome {
                status: match input_lost {
                    Some(_) => OperationStatus::Failure,
                    None => unless_cancelled(OperationStatus::Success),
                },
                metadata: json!(result),
                error: input_lost.map_or_else(String::new, |lost| {
                    format!(
                        "the command was ended: its input broke off after {} bytes: {}",
                        lost.after, lost.reason
                    )
                }),
            }
        }
        Ended::Detached(why) => without_result(
            OperationStatus::Failure,
            &format!("{why}, and the command keeps running"),
        ),
        Ended::Failed { error, timed_out } => {
            let mut result = ExecEnded::default();
            result.exit_code = error.exit_code();
            result.start_error = error.start_error().map(str::to_owned);
            result.timed_out = timed_out;
            Outcome {
                status: unless_cancelled(OperationStatus::Failure),
                metadata: json!(result),
                error: with_causes(&error).chars().take(MAX_ERROR_CHARS).collect(),
            }
        }
    }
}

/// Closes the websockets in the background: each waits for its client ([`ws::linger`]).
fn close(shutdown: &Shutdown, sockets: Vec<WebSocket>) {
    for socket in sockets {
        let stop = shutdown.child_token();
        shutdown.spawn(async move {
            select! {
                () = ws::linger(socket) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}
