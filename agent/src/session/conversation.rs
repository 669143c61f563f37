//! One session, from dialling to its end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nightshift_proto::{
    MAX_MESSAGE_BYTES, SESSION_PROTOCOL_VERSION,
    v1::{self, agent_message::Body, agent_service_client::AgentServiceClient, controller_message},
};
use tokio::time::timeout;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

use super::{
    Options, feed, inspections::Inspections, logs::Requests, looks::Looks, outgoing, transport,
    writer::Writer,
};
use crate::{
    ledger::Ledger,
    link_prep::known::ClusterPorts,
    spool::{self, Cursor},
    supervisor::{self, Command},
};

/// To connect: the controller is on this machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// From Hello to Welcome; a controller that is still replaying its ledger does not listen yet.
const WELCOME_LIMIT: Duration = Duration::from_secs(10);

/// HTTP/2 pings: with the limit for their answer, a peer that is gone without a word is noticed within 10 s.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// For the controller to read what was sent and to close its half. Results it does not acknowledge stay spooled.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(1);

/// Heartbeats, observations and reports where the controller names no interval.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(1);
const DEFAULT_OBSERVATION: Duration = Duration::from_secs(10);
const DEFAULT_PROGRESS: Duration = Duration::from_millis(250);

/// Why there is no session (any more).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers.
    #[error("the controller at {address} cannot be reached")]
    Unreachable {
        /// Where it should be.
        address: std::net::SocketAddr,
        /// What the transport said.
        source: tonic::transport::Error,
    },
    /// It refuses us, or the connection broke; in its words.
    #[error("the controller ended the session: {} ({:?})", .0.message(), .0.code())]
    Refused(Box<Status>),
    /// The connection broke.
    #[error("the connection to the controller was lost: {0}")]
    Lost(String),
    /// It does not follow the protocol.
    #[error("the controller {0}")]
    Protocol(&'static str),
    /// It has another ledger: nothing of what is here concerns it.
    #[error("the controller has another ledger, {0}")]
    OtherLedger(String),
    /// What belongs to the old ledger cannot be set aside.
    #[error("cannot change over to the controller's ledger")]
    ChangeOver(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The runtime's status is part of the Hello.
    #[error("the Python runtime has changed")]
    RuntimeChanged,
    /// The spool cannot be read.
    #[error("the spool cannot be read")]
    Spool(#[from] spool::AskError),
    /// A part of the agent is gone: it is ending, or broken.
    #[error("{0}")]
    Internal(&'static str),
}

impl From<outgoing::Closed> for Error {
    fn from(_: outgoing::Closed) -> Self {
        Self::Lost("the stream is closed".to_owned())
    }
}

impl From<transport::Gone> for Error {
    fn from(_: transport::Gone) -> Self {
        Self::Internal("the thread of the connection to the controller has ended")
    }
}

impl From<spool::Closed> for Error {
    fn from(_: spool::Closed) -> Self {
        Self::Internal("the spool is closed")
    }
}

impl From<supervisor::Gone> for Error {
    fn from(_: supervisor::Gone) -> Self {
        Self::Internal("the supervisor has ended")
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        match status.code() {
            // The transport's own words for a connection that is gone.
            tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled => {
                Self::Lost(status.message().to_owned())
            }
            _ => Self::Refused(Box::new(status)),
        }
    }
}

/// Holds a session until it breaks, or until the supervisor has ended and everything is sent.
///
/// # Errors
/// Why it broke.
pub async fn hold(options: &Options, ledger: &mut Ledger) -> Result<(), Error> {
    let channel = dial(options).await?;
    let (sender, stream) = outgoing::channel();
    let (feed, events) = feed::channel();
    let workers = options.supervisor.attach(feed).await?;
    let held = talk(options, ledger, Line { channel, sender, stream, events }, workers).await;
    // Both may be gone when the agent ends.
    let _ = options.supervisor.detach().await;
    let _ = options.spool.set_connected(false).await;
    held
}

/// Ends what belongs to the ledger so far, sets it aside, and takes the new one. Broken off, it is done again: the new
/// name is written last.
///
/// # Errors
/// Why it cannot be done.
pub async fn change_over(options: &Options, ledger: &mut Ledger, id: &str) -> Result<(), Error> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| Error::ChangeOver(error);
    let place = ledger.place_aside().map_err(|error| failed(error.into()))?;
    options.supervisor.start_over(place.clone()).await.map_err(|error| failed(error.into()))?;
    let (waiting, _) = options.spool.waiting().await?;
    options.spool.set_aside(place.clone()).await.map_err(|error| failed(error.into()))?;
    if waiting > 0 {
        tracing::warn!(
            results = waiting, place = %place.display(),
            "the controller has another ledger; results of the old one that were not acknowledged are set aside"
        );
    } else {
        tracing::info!(
            before = ledger.id(),
            now = id,
            "the controller has another ledger; nothing of the old one waited"
        );
    }
    ledger.take(id).map_err(|error| failed(error.into()))
}

async fn dial(options: &Options) -> Result<Channel, Error> {
    let address = options.controller;
    let unreachable = |source| Error::Unreachable { address, source };
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(unreachable)?
        .connect_timeout(CONNECT_LIMIT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    // What dials is where the connection lives.
    options.transport.run(async move { endpoint.connect().await }).await?.map_err(unreachable)
}

/// The ends of what a session is made of.
struct Line {
    channel: Channel,
    sender: outgoing::Sender,
    stream: outgoing::Outgoing,
    events: feed::Receiver,
}

async fn talk(
    options: &Options,
    ledger: &mut Ledger,
    line: Line,
    workers: Vec<v1::RunningWorker>,
) -> Result<(), Error> {
    let Line { channel, sender, stream, events } = line;
    let mut observations = options.probe.subscribe();
    let mut runtime = options.runtime.clone();
    let (spooled_results, acked) = options.spool.waiting().await?;
    let observation = options.boot.with(&observations.borrow_and_update());
    let runtime_status = runtime.borrow_and_update().to_proto();
    sender
        .send(Body::Hello(v1::Hello {
            protocol_version: SESSION_PROTOCOL_VERSION,
            node_id: options.node_id.clone(),
            agent_instance_id: options.instance_id.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            observation: Some(observation),
            runtime: Some(runtime_status),
            capabilities: Some(v1::Capabilities {
                // Ring works over any network. JACCL is offered once a node has shown that it has RDMA.
                backends: vec![v1::Backend::None.into(), v1::Backend::Ring.into()],
                model_roots: options.model_roots.iter().map(|root| root.display().to_string()).collect(),
                memory_budget_bytes: options.memory_budget_bytes.unwrap_or(0),
                tests_links: true,
            }),
            workers,
            spooled_results,
            ledger_id: ledger.id().to_owned(),
        }))
        .await?;

    let mut client = AgentServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let (mut inbound, welcome) = timeout(WELCOME_LIMIT, async {
        let mut inbound = client.session(stream).await?.into_inner();
        let welcome = next(&mut inbound).await?;
        Ok::<_, Error>((inbound, welcome))
    })
    .await
    .map_err(|_| Error::Protocol("did not answer the Hello in time"))??;
    let controller_message::Body::Welcome(welcome) = welcome else {
        return Err(Error::Protocol("did not begin with a Welcome"));
    };
    if !ledger.is(&welcome.ledger_id) {
        return Err(Error::OtherLedger(welcome.ledger_id));
    }
    // Before the first command of it can be carried out.
    ledger.take(&welcome.ledger_id).map_err(|error| Error::ChangeOver(error.into()))?;
    tracing::info!(
        controller = welcome.controller_instance_id,
        spooled_results,
        "in session with the controller"
    );
    options.spool.set_connected(true).await?;
    apply(options, &sender, &welcome).await?;

    let sent_through = Arc::new(AtomicU64::new(acked));
    let writer = Writer {
        sender: sender.clone(),
        feed: events,
        spool: options.spool.clone(),
        observations,
        boot: options.boot.clone(),
        sent_through: Arc::clone(&sent_through),
        cursor: Cursor::after(acked),
    };
    let reader = Reader {
        supervisor: &options.supervisor,
        spool: &options.spool,
        logs: Requests::new(options.logs.clone(), options.node_id.clone(), sender.clone()),
        inspections: Inspections::new(options.inspector.clone(), sender.clone()),
        looks: Looks::new(sender.clone()),
        cluster_ports: &options.cluster_ports,
        sent_through: Arc::clone(&sent_through),
    };
    let reading = reader.run(&mut inbound);
    tokio::pin!(reading);
    let written = tokio::select! {
        written = writer.run() => written,
        read = &mut reading => return read,
        () = sender.closed() => return Err(reading_error(timeout(LAST_WORDS_LIMIT, reading).await)),
        Ok(()) = runtime.changed() => return Err(Error::RuntimeChanged),
    };
    written?;
    // The agent ends. The controller closes its half when it has read ours to the end.
    sender.finish().await?;
    let _ = timeout(LAST_WORDS_LIMIT, reading).await;
    Ok(())
}

/// The stream was dropped by the transport; the incoming half knows why.
fn reading_error(read: Result<Result<(), Error>, tokio::time::error::Elapsed>) -> Error {
    match read {
        Ok(Err(error)) => error,
        _ => outgoing::Closed.into(),
    }
}

async fn apply(options: &Options, sender: &outgoing::Sender, welcome: &v1::Welcome) -> Result<(), Error> {
    let or = |ms: u64, default| if ms == 0 { default } else { Duration::from_millis(ms) };
    sender.start_heartbeats(or(welcome.heartbeat_interval_ms, DEFAULT_HEARTBEAT)).await?;
    options.probe.set_interval(or(welcome.observation_interval_ms, DEFAULT_OBSERVATION));
    options.supervisor.set_report_interval(or(welcome.progress_interval_ms, DEFAULT_PROGRESS)).await?;
    Ok(())
}

async fn next(inbound: &mut Streaming<v1::ControllerMessage>) -> Result<controller_message::Body, Error> {
    loop {
        match inbound.message().await? {
            Some(v1::ControllerMessage { body: Some(body) }) => return Ok(body),
            // A message of a later version: what it asks for cannot be needed by this one.
            Some(_) => {}
            None => return Err(Error::Lost("the controller closed the stream".to_owned())),
        }
    }
}

struct Reader<'a> {
    supervisor: &'a supervisor::Handle,
    spool: &'a spool::Handle,
    logs: Requests,
    inspections: Inspections,
    looks: Looks,
    cluster_ports: &'a ClusterPorts,
    sent_through: Arc<AtomicU64>,
}

impl Reader<'_> {
    async fn run(mut self, inbound: &mut Streaming<v1::ControllerMessage>) -> Result<(), Error> {
        use controller_message::Body;
        loop {
            match next(inbound).await? {
                Body::Welcome(_) => return Err(Error::Protocol("said Welcome twice")),
                Body::AckResults(ack) => {
                    // What was not sent in this session cannot be known to be what the controller has.
                    let sent = self.sent_through.load(Ordering::Relaxed);
                    self.spool.ack(ack.through_spool_seq.min(sent)).await?;
                }
                Body::LogRequest(request) => self.logs.take(&request),
                Body::InspectModel(request) => self.inspections.take(request).await?,
                Body::LookAtNode(request) => self.looks.take(request),
                Body::StartWorker(start) => self.supervisor.command(Command::Start(Box::new(start))).await?,
                Body::StopWorker(stop) => self.supervisor.command(Command::Stop(stop)).await?,
                Body::Rows(rows) => self.supervisor.command(Command::Rows(rows)).await?,
                Body::CancelRows(rows) => self.supervisor.command(Command::Cancel(rows)).await?,
                Body::TestLink(test) => self.supervisor.command(Command::TestLink(Box::new(test))).await?,
                Body::RestartMachine(restart) => {
                    self.supervisor.command(Command::Restart(restart)).await?;
                }
                Body::Drain(drain) => self.supervisor.command(Command::Drain(drain)).await?,
                Body::ClusterPorts(ports) => self.cluster_ports.learn(&ports),
            }
        }
    }
}
