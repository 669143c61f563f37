//! The connection to the controller: where it is, how long to wait, and what its errors mean to a person.

use std::{error::Error as _, future::Future, time::Duration};

use nightshift_proto::{
    MAX_MESSAGE_BYTES,
    v1::{self, control_service_client::ControlServiceClient},
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Code, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    error::{Error, Result},
    output::text::{capital, clean, sentence},
};

/// Where a controller listens unless told otherwise.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:7400";

/// The environment variable that names a controller.
pub const ADDRESS_VARIABLE: &str = "NIGHTSHIFT_CONTROLLER";

const DEFAULT_PORT: u16 = 7400;

/// A TCP handshake in one building takes milliseconds; this is for a Mac that is waking up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A controller answers from memory; one that takes longer hangs or swaps.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// For a plan the controller asks the nodes, which read the headers of a model's files: seconds on a cold disk.
const PLAN_TIMEOUT: Duration = Duration::from_secs(60);

/// How soon a connection without traffic is noticed to be dead: interval + timeout.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long `watch` and the `-f` commands wait for a controller that went away. A restart takes seconds, a reboot of its
/// machine a few minutes.
pub const RECONNECT_FOR: Duration = Duration::from_secs(300);

/// Between two attempts.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// A controller's address and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    host_port: String,
    origin: &'static str,
}

impl Address {
    /// From the flag, else the environment, else the default.
    pub fn choose(flag: Option<&str>, env: Option<&str>) -> Result<Self> {
        match (flag, env.filter(|value| !value.is_empty())) {
            (Some(text), _) => Address::parse(text, "from --controller"),
            (None, Some(text)) => Address::parse(text, "from the environment variable NIGHTSHIFT_CONTROLLER"),
            (None, None) => Address::parse(DEFAULT_ADDRESS, "the default address"),
        }
    }

    /// `host`, `host:port`, `[::1]:port` or `http://host:port`; the port defaults to 7400.
    pub fn parse(text: &str, origin: &'static str) -> Result<Self> {
        let wrong = |why: &str| Error::Usage {
            message: format!("{text:?} ({origin}) is not an address of a controller: {why}."),
            hint: Some(format!("An address is HOST:PORT, for example {DEFAULT_ADDRESS}.")),
        };
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest.trim_end_matches('/'),
            Some((scheme, _)) => return Err(wrong(&format!("{scheme}:// is not spoken here"))),
            None => text,
        };
        let bare_v6 = rest.matches(':').count() > 1 && !rest.starts_with('[');
        let host_port = if bare_v6 {
            format!("[{rest}]:{DEFAULT_PORT}")
        } else if rest.ends_with(']') || !rest.contains(':') {
            format!("{rest}:{DEFAULT_PORT}")
        } else {
            rest.to_owned()
        };
        let (host, port) = host_port.rsplit_once(':').unwrap_or_default();
        if host.is_empty() || host.contains(['/', '@', ' ']) {
            return Err(wrong("it has no host"));
        }
        if port.parse::<u16>().is_err() {
            return Err(wrong("the port is not a number up to 65535"));
        }
        Ok(Address { host_port, origin })
    }

    /// "host:port"
    pub fn as_str(&self) -> &str {
        &self.host_port
    }

    fn is_loopback(&self) -> bool {
        let host = self.host_port.rsplit_once(':').map_or("", |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    fn unreachable(&self, cause: String) -> Error {
        let start = if self.host_port == DEFAULT_ADDRESS {
            "Is clusterd running? Start it with: clusterd".to_owned()
        } else if self.is_loopback() {
            format!("Is clusterd running there? Start it with: clusterd --listen {}", self.host_port)
        } else {
            "Is clusterd running there, and does it listen on that address?".to_owned()
        };
        let hint = format!("{start} (or name another address with --controller HOST:PORT)");
        Error::Unreachable { address: self.host_port.clone(), origin: self.origin, cause, hint }
    }

    fn lost(&self, cause: String) -> Error {
        Error::Lost {
            address: self.host_port.clone(),
            cause,
            hint:
                "Jobs go on without this window. Look whether the controller is back with: clusterctl status"
                    .to_owned(),
        }
    }
}

/// A connected controller.
#[derive(Debug, Clone)]
pub struct Client {
    rpc: ControlServiceClient<Channel>,
    address: Address,
}

impl Client {
    /// Connects, once.
    pub async fn connect(address: &Address) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("http://{}", address.host_port))
            .map_err(|e| Error::Usage {
                message: format!("{:?} is not an address of a controller: {e}.", address.host_port),
                hint: Some(format!("An address is HOST:PORT, for example {DEFAULT_ADDRESS}.")),
            })?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT);
        // The endpoint's own limit covers one address; a name may have several.
        let channel = match timeout(CONNECT_TIMEOUT * 2, endpoint.connect()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(e)) => return Err(address.unreachable(root_cause(&e))),
            Err(_) => {
                return Err(
                    address.unreachable(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs() * 2))
                );
            }
        };
        let rpc = ControlServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Client { rpc, address: address.clone() })
    }

    /// Connects again to a controller that was there, trying until [`RECONNECT_FOR`] is over.
    pub async fn reconnect(&mut self) -> Result<()> {
        let deadline = Instant::now() + RECONNECT_FOR;
        loop {
            // First of all a pause: a controller that takes connections and ends them is not asked in a busy loop.
            sleep(RECONNECT_PAUSE).await;
            match Client::connect(&self.address).await {
                Ok(client) => {
                    *self = client;
                    return Ok(());
                }
                Err(e) if Instant::now() >= deadline => return Err(e),
                Err(_) => {}
            }
        }
    }

    /// Its address.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// `GetStatus`.
    pub async fn status(&mut self) -> Result<v1::ClusterStatus> {
        let Client { rpc, address } = self;
        answer(address, rpc.get_status(v1::GetStatusRequest {})).await
    }

    /// `GetReport`.
    pub async fn report(&mut self, since: String) -> Result<v1::Report> {
        let Client { rpc, address } = self;
        answer(address, rpc.get_report(v1::GetReportRequest { since })).await
    }

    /// `Explain`, of a job.
    pub async fn explain_job(&mut self, job_id: u64) -> Result<v1::Explanation> {
        let Client { rpc, address } = self;
        let request = v1::ExplainRequest { job_id, node_id: String::new() };
        answer(address, rpc.explain(request)).await.map_err(look_in(ALL_JOBS))
    }

    /// `Explain`, of a node.
    pub async fn explain_node(&mut self, node_id: &str) -> Result<v1::Explanation> {
        let Client { rpc, address } = self;
        let request = v1::ExplainRequest { job_id: 0, node_id: node_id.to_owned() };
        answer(address, rpc.explain(request)).await.map_err(look_in(ALL_NODES))
    }

    /// `Diagnose`, of one node, or with an empty name of all.
    pub async fn diagnose(&mut self, node_id: String) -> Result<v1::Diagnosis> {
        let Client { rpc, address } = self;
        answer(address, rpc.diagnose(v1::DiagnoseRequest { node_id })).await.map_err(look_in(ALL_NODES))
    }

    /// `ListJobs`.
    pub async fn jobs(&mut self, all: bool) -> Result<Vec<v1::Job>> {
        let Client { rpc, address } = self;
        Ok(answer(address, rpc.list_jobs(v1::ListJobsRequest { all })).await?.jobs)
    }

    /// `GetJob`.
    pub async fn job(&mut self, job_id: u64) -> Result<v1::Job> {
        let Client { rpc, address } = self;
        answer(address, rpc.get_job(v1::GetJobRequest { job_id })).await.map_err(look_in(ALL_JOBS))
    }

    /// `CancelJob`.
    pub async fn cancel(&mut self, job_id: u64, now: bool) -> Result<v1::Job> {
        let Client { rpc, address } = self;
        answer(address, rpc.cancel_job(v1::JobRequest { job_id, now })).await.map_err(look_in(ALL_JOBS))
    }

    /// `PauseJob`.
    pub async fn pause(&mut self, job_id: u64) -> Result<v1::Job> {
        let Client { rpc, address } = self;
        let request = v1::JobRequest { job_id, now: false };
        answer(address, rpc.pause_job(request)).await.map_err(look_in(ALL_JOBS))
    }

    /// `ResumeJob`.
    pub async fn resume(&mut self, job_id: u64) -> Result<v1::Job> {
        let Client { rpc, address } = self;
        let request = v1::JobRequest { job_id, now: false };
        answer(address, rpc.resume_job(request)).await.map_err(look_in(ALL_JOBS))
    }

    /// `Plan`.
    pub async fn plan(&mut self, request: v1::PlanRequest) -> Result<v1::PlanReply> {
        let Client { rpc, address } = self;
        answer_within(PLAN_TIMEOUT, address, rpc.plan(request)).await
    }

    /// `ListNodes`.
    pub async fn nodes(&mut self) -> Result<Vec<v1::Node>> {
        let Client { rpc, address } = self;
        Ok(answer(address, rpc.list_nodes(v1::ListNodesRequest {})).await?.nodes)
    }

    /// `DrainNode`.
    pub async fn drain(&mut self, node_id: &str, drain: bool) -> Result<v1::Node> {
        let Client { rpc, address } = self;
        let request = v1::DrainNodeRequest { node_id: node_id.to_owned(), drain };
        answer(address, rpc.drain_node(request)).await.map_err(look_in(ALL_NODES))
    }

    /// `Submit`. Waits as long as the upload moves; a dead peer is noticed by keep-alive.
    pub async fn submit(
        &mut self,
        chunks: impl futures_util::Stream<Item = v1::SubmitChunk> + Send + 'static,
    ) -> Result<v1::SubmitReply> {
        let Client { rpc, address } = self;
        rpc.submit(chunks).await.map(Response::into_inner).map_err(|status| from_status(address, &status))
    }

    /// `WatchJobs`.
    pub async fn watch(&mut self, job_id: u64, interval_ms: u64) -> Result<Messages<v1::WatchJobsReply>> {
        let Client { rpc, address } = self;
        let request = v1::WatchJobsRequest { job_id, interval_ms };
        let stream = answer(address, rpc.watch_jobs(request)).await.map_err(look_in(ALL_JOBS))?;
        Ok(Messages { stream, address: address.clone() })
    }

    /// `GetResults`.
    pub async fn results(
        &mut self,
        job_id: u64,
        follow: bool,
        errors: bool,
    ) -> Result<Messages<v1::ResultsChunk>> {
        let Client { rpc, address } = self;
        let request = v1::GetResultsRequest { job_id, follow, errors };
        let stream = answer(address, rpc.get_results(request)).await.map_err(look_in(ALL_JOBS))?;
        Ok(Messages { stream, address: address.clone() })
    }

    /// `GetEvents`.
    pub async fn events(&mut self, request: v1::GetEventsRequest) -> Result<Messages<v1::Event>> {
        let Client { rpc, address } = self;
        let stream = answer(address, rpc.get_events(request)).await?;
        Ok(Messages { stream, address: address.clone() })
    }

    /// `GetLogs`.
    pub async fn logs(&mut self, request: v1::GetLogsRequest) -> Result<Messages<v1::LogLines>> {
        let Client { rpc, address } = self;
        let place = if request.job_id == 0 { ALL_NODES } else { ALL_JOBS };
        let stream = answer(address, rpc.get_logs(request)).await.map_err(look_in(place))?;
        Ok(Messages { stream, address: address.clone() })
    }
}

/// A stream from the controller, with its errors in our words.
#[derive(Debug)]
pub struct Messages<T> {
    stream: Streaming<T>,
    address: Address,
}

impl<T> Messages<T> {
    /// The next message; none when the controller has ended the stream.
    pub async fn next(&mut self) -> Result<Option<T>> {
        self.stream.message().await.map_err(|status| from_status(&self.address, &status))
    }
}

async fn answer<T>(address: &Address, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T> {
    answer_within(ANSWER_TIMEOUT, address, call).await
}

async fn answer_within<T>(
    limit: Duration,
    address: &Address,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T> {
    match timeout(limit, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(from_status(address, &status)),
        Err(_) => Err(address.unreachable(format!("connected, but no answer within {} s", limit.as_secs()))),
    }
}

fn from_status(address: &Address, status: &Status) -> Error {
    // A status made on this side has a source (the transport's error); one the controller sent has none.
    if let Some(source) = status.source() {
        return address.lost(root_cause(source));
    }
    let refused =
        |message: String, hint: Option<&str>| Error::Refused { message, hint: hint.map(str::to_owned) };
    let message = || capital(&sentence(&clean(status.message())));
    match status.code() {
        // A controller that stops says so to everybody who asks or listens.
        Code::Unavailable => address.lost(clean(status.message()).into_owned()),
        Code::NotFound => Error::NotFound { message: message(), hint: None },
        Code::Unimplemented => refused(
            format!("The program at {} does not know this request.", address.host_port),
            Some(
                "Is it clusterd, and as new as this clusterctl? Compare: clusterctl --version, clusterd --version",
            ),
        ),
        Code::Unauthenticated | Code::PermissionDenied => {
            refused(message(), Some("This controller wants credentials that clusterctl did not show."))
        }
        _ if status.message().is_empty() => refused(
            format!("The controller refused without saying why ({}).", status.code().description()),
            Some("Its log may say more."),
        ),
        _ => refused(message(), None),
    }
}

/// Adds where to look when the controller says that something does not exist.
fn look_in(hint: &str) -> impl Fn(Error) -> Error {
    move |error| match error {
        Error::NotFound { message, .. } => Error::NotFound { message, hint: Some(hint.to_owned()) },
        other => other,
    }
}

const ALL_JOBS: &str = "All jobs: clusterctl jobs --all";
const ALL_NODES: &str = "All nodes: clusterctl nodes";

/// The innermost error, in lower case and without its number: "connection refused".
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let text = cause.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text).trim_end_matches('.');
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => "unknown cause".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> String {
        Address::parse(text, "test").map_or_else(|e| e.to_string(), |a| a.host_port)
    }

    #[test]
    fn addresses_are_forgiving_and_wrong_ones_are_named() {
        assert_eq!(parse("127.0.0.1:7400"), "127.0.0.1:7400");
        assert_eq!(parse("mini.local"), "mini.local:7400");
        assert_eq!(parse("http://mini.local:80/"), "mini.local:80");
        assert_eq!(parse("[::1]:99"), "[::1]:99");
        assert_eq!(parse("[::1]"), "[::1]:7400");
        assert_eq!(parse("::1"), "[::1]:7400");
        assert_eq!(
            parse("a:b"),
            "\"a:b\" (test) is not an address of a controller: the port is not a number up to 65535."
        );
        assert_eq!(
            parse("https://a"),
            "\"https://a\" (test) is not an address of a controller: https:// is not spoken here."
        );
        assert_eq!(parse(":7400"), "\":7400\" (test) is not an address of a controller: it has no host.");
    }

    #[test]
    fn the_flag_outranks_the_environment() {
        let choose = |flag, env| Address::choose(flag, env).unwrap().host_port;
        assert_eq!(choose(Some("a:1"), Some("b:2")), "a:1");
        assert_eq!(choose(None, Some("b:2")), "b:2");
        assert_eq!(choose(None, Some("")), DEFAULT_ADDRESS);
        assert_eq!(choose(None, None), DEFAULT_ADDRESS);
    }
}
