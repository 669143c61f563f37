//! Answers a request for log lines: the newest first, and then, where asked, every line as it comes.

use std::{collections::HashMap, time::Duration};

use nightshift_proto::v1::{self, LogSource, agent_message::Body};
use tokio::task::{AbortHandle, JoinSet};

use super::outgoing::Sender;
use crate::logging::{Filter, Line, LogStore};

/// Requests followed at once; each is a person watching.
const MAX_FOLLOWED: usize = 16;

/// Lines in one message.
const MAX_LINES: usize = 200;

/// Between two messages to the same follower: a worker that writes much must not crowd out results.
const PAUSE: Duration = Duration::from_millis(100);

/// The requests of one session; they end with it.
#[derive(Debug)]
pub struct Requests {
    logs: LogStore,
    node_id: String,
    sender: Sender,
    tasks: JoinSet<()>,
    followed: HashMap<u64, AbortHandle>,
}

impl Requests {
    /// For a session.
    #[must_use]
    pub fn new(logs: LogStore, node_id: String, sender: Sender) -> Self {
        Self { logs, node_id, sender, tasks: JoinSet::new(), followed: HashMap::new() }
    }

    /// Takes a request up, or ends one.
    pub fn take(&mut self, request: &v1::LogRequest) {
        while self.tasks.try_join_next().is_some() {}
        self.followed.retain(|_, task| !task.is_finished());
        let id = request.request_id;
        if let Some(task) = self.followed.remove(&id) {
            task.abort();
        }
        if request.cancel {
            return;
        }
        let filter = match (request.source(), request.job_id) {
            (LogSource::Workers, 0) => Filter::Workers,
            (LogSource::Workers, job_id) => Filter::Job(job_id),
            _ => Filter::Agent,
        };
        let follow = request.follow && self.followed.len() < MAX_FOLLOWED;
        let tail_lines = usize::try_from(request.tail_lines).unwrap_or(usize::MAX);
        let answer = answer(
            self.logs.clone(),
            filter,
            tail_lines,
            follow,
            Post { id, node_id: self.node_id.clone(), sender: self.sender.clone() },
        );
        let task = self.tasks.spawn(answer);
        if follow {
            self.followed.insert(id, task);
        }
    }
}

async fn answer(logs: LogStore, filter: Filter, tail_lines: usize, follow: bool, post: Post) {
    // Subscribed before the tail is taken: a line between the two comes twice rather than never.
    let mut follower = follow.then(|| logs.follow(filter));
    let tail = logs.tail(filter, tail_lines);
    let newest = tail.last().cloned();
    for lines in tail.chunks(MAX_LINES) {
        if !post.send(lines.iter().map(|line| post.line(line)).collect(), false).await {
            return;
        }
    }
    while let Some(follower) = &mut follower {
        let Some((lost, mut lines)) = follower.next(MAX_LINES).await else { break };
        if let Some(newest) = &newest {
            lines.retain(|line| line.unix_ms > newest.unix_ms || !tail.contains(line));
        }
        let mut wire: Vec<_> = lines.iter().map(|line| post.line(line)).collect();
        if lost > 0 {
            let text = format!("({lost} lines were written faster than they could be sent)");
            wire.insert(0, v1::LogLine { text, ..wire.first().cloned().unwrap_or_default() });
        }
        if !wire.is_empty() && !post.send(wire, false).await {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
    post.send(Vec::new(), true).await;
}

struct Post {
    id: u64,
    node_id: String,
    sender: Sender,
}

impl Post {
    fn line(&self, line: &Line) -> v1::LogLine {
        v1::LogLine {
            unix_ms: line.unix_ms,
            source: line.source.to_string(),
            text: line.text.clone(),
            node_id: self.node_id.clone(),
        }
    }

    /// False when the session is over.
    async fn send(&self, lines: Vec<v1::LogLine>, end: bool) -> bool {
        self.sender.send(Body::LogLines(v1::LogLines { request_id: self.id, lines, end })).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;
    use crate::session::outgoing;

    async fn next(stream: &mut outgoing::Outgoing) -> (Vec<String>, bool) {
        match stream.next().await.unwrap().body {
            Some(Body::LogLines(lines)) => (
                lines.lines.into_iter().map(|line| format!("{} {}", line.source, line.text)).collect(),
                lines.end,
            ),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_tail_ends_and_a_followed_one_goes_on_until_cancelled() {
        let logs = LogStore::default();
        let (agent, worker) = (logs.open("agent", None), logs.open("j7/e1/r0", Some(7)));
        (0..3).for_each(|n| worker.push(&format!("w{n}")));
        agent.push("a");
        let (sender, mut stream) = outgoing::channel();
        let mut requests = Requests::new(logs, "n1".into(), sender);

        let workers = v1::LogRequest {
            request_id: 1,
            source: LogSource::Workers.into(),
            job_id: 7,
            tail_lines: 2,
            ..Default::default()
        };
        requests.take(&workers);
        assert_eq!(next(&mut stream).await, (vec!["j7/e1/r0 w1".into(), "j7/e1/r0 w2".into()], false));
        assert_eq!(next(&mut stream).await, (vec![], true));

        requests.take(&v1::LogRequest { request_id: 2, follow: true, ..workers });
        assert_eq!(next(&mut stream).await.0.len(), 2);
        worker.push("w3");
        agent.push("not this");
        assert_eq!(next(&mut stream).await, (vec!["j7/e1/r0 w3".into()], false));
        requests.take(&v1::LogRequest { request_id: 2, cancel: true, ..workers });
        assert!(requests.followed.is_empty());
        requests.take(&v1::LogRequest {
            request_id: 3,
            source: LogSource::Agent.into(),
            tail_lines: 9,
            ..Default::default()
        });
        assert_eq!(next(&mut stream).await.0, ["agent a", "agent not this"]);
    }
}
