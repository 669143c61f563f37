//! Streams a submission to the controller: any size, a bounded piece at a time, tried again once when the connection
//! breaks.

use std::{
    future::pending,
    io,
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use nightshift_proto::v1::{self, submit_chunk::Part};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::oneshot,
    time::{Instant, MissedTickBehavior, interval},
};

use super::prompts::{Converter, RowDefaults};
use crate::{
    client::Client,
    error::{Error, Result},
    output::{
        Output, Style,
        live::{Live, interrupted},
        text::width,
        units,
    },
};

/// What is read and sent at once. A message has a limit of 32 MiB; a quarter of a MiB keeps HTTP/2 busy and memory small.
const CHUNK_BYTES: usize = 256 * 1024;

/// How often the progress line is drawn.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Where rows come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// A file; a regular one has a size and can be read twice.
    File {
        /// As given.
        path: PathBuf,
        /// Of a regular file.
        size_bytes: Option<u64>,
    },
    /// Standard input: read once.
    Stdin,
}

impl Source {
    /// `-` is standard input. A file must be there and readable, so that the mistake is reported before anything is sent.
    pub fn open(path: &Path) -> Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Source::Stdin);
        }
        let unreadable = |e: io::Error| cannot_read(path, &e);
        let meta = std::fs::File::open(path).and_then(|file| file.metadata()).map_err(unreadable)?;
        if meta.is_dir() {
            return Err(Error::local_hint(
                format!("{} is a directory.", path.display()),
                "Name the file with the rows, one JSON object a line (or one prompt a line, with --prompts).",
            ));
        }
        Ok(Source::File { path: path.to_owned(), size_bytes: meta.is_file().then_some(meta.len()) })
    }

    /// "prompts.jsonl", "standard input".
    pub fn describe(&self) -> String {
        match self {
            Source::File { path, .. } => path.display().to_string(),
            Source::Stdin => "standard input".to_owned(),
        }
    }

    fn size_bytes(&self) -> Option<u64> {
        match self {
            Source::File { size_bytes, .. } => *size_bytes,
            Source::Stdin => None,
        }
    }

    async fn reader(&self) -> Result<Pin<Box<dyn AsyncRead + Send>>> {
        match self {
            Source::File { path, .. } => match tokio::fs::File::open(path).await {
                Ok(mut file) => {
                    file.set_max_buf_size(CHUNK_BYTES);
                    Ok(Box::pin(file))
                }
                Err(e) => Err(cannot_read(path, &e)),
            },
            Source::Stdin => Ok(Box::pin(tokio::io::stdin())),
        }
    }
}

fn cannot_read(path: &Path, e: &io::Error) -> Error {
    let why = match e.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => e.to_string(),
    };
    Error::local(format!("Cannot read {}: {why}.", path.display()))
}

/// Sends a submission and waits for the answer. With `prompts`, lines are prompts and become rows on the way.
pub async fn upload(
    client: &mut Client,
    spec: v1::JobSpec,
    source: &Source,
    prompts: Option<&RowDefaults>,
    output: &Output,
) -> Result<v1::SubmitReply> {
    let first = attempt(client, &spec, source, prompts, output).await;
    let Err(Error::Lost { .. }) = first else { return first };
    // The same submission id: if the first attempt did arrive, the controller answers with that job.
    if source.size_bytes().is_none() {
        return first.map_err(|e| unknown_outcome(e, &spec));
    }
    output.note("The connection broke. Trying once more, under the same submission number.");
    client.reconnect().await?;
    attempt(client, &spec, source, prompts, output).await.map_err(|e| unknown_outcome(e, &spec))
}

fn unknown_outcome(error: Error, spec: &v1::JobSpec) -> Error {
    match error {
        Error::Lost { address, cause, .. } => {
            let name =
                if spec.name.is_empty() { String::new() } else { format!(" (its name is {})", spec.name) };
            Error::Lost {
                address,
                cause,
                hint: format!(
                    "Whether the job was accepted is not known; look for it with: clusterctl jobs --all{name}"
                ),
            }
        }
        other => other,
    }
}

async fn attempt(
    client: &mut Client,
    spec: &v1::JobSpec,
    source: &Source,
    prompts: Option<&RowDefaults>,
    output: &Output,
) -> Result<v1::SubmitReply> {
    let read_bytes = Arc::new(AtomicU64::new(0));
    let (failed, failure) = oneshot::channel();
    let input = Input {
        reader: source.reader().await?,
        source: source.describe(),
        block: vec![0; CHUNK_BYTES],
        start: 0,
        end: 0,
        at_end: false,
        said_end: false,
        converter: prompts.map(Converter::new),
        read_bytes: Arc::clone(&read_bytes),
        failed: Some(failed),
    };
    let spec = v1::SubmitChunk { part: Some(Part::Spec(spec.clone())) };
    let chunks = stream::iter([spec]).chain(input.chunks());

    let mut progress = Progress::new(source, output);
    let mut call = pin!(client.submit(chunks));
    // When the input cannot be read to its end the call is dropped without the empty message that says "that was all".
    let mut failure = pin!(async {
        match failure.await {
            Ok(error) => error,
            Err(_) => pending().await,
        }
    });
    let mut stop = pin!(interrupted());
    let mut tick = interval(PROGRESS_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let reply = loop {
        tokio::select! {
            reply = &mut call => break reply,
            error = &mut failure => break Err(error),
            () = &mut stop => break Err(Error::Interrupted),
            _ = tick.tick() => progress.draw(read_bytes.load(Ordering::Relaxed)),
        }
    };
    progress.clear();
    if matches!(reply, Err(Error::Interrupted)) {
        output.note("Stopped before everything was sent: nothing was submitted.");
    }
    reply
}

/// The input on its way into messages.
struct Input {
    reader: Pin<Box<dyn AsyncRead + Send>>,
    source: String,
    block: Vec<u8>,
    start: usize,
    end: usize,
    at_end: bool,
    said_end: bool,
    converter: Option<Converter>,
    read_bytes: Arc<AtomicU64>,
    failed: Option<oneshot::Sender<Error>>,
}

impl Input {
    fn chunks(self) -> impl Stream<Item = v1::SubmitChunk> + Send {
        stream::unfold(self, |mut input| async move {
            match input.chunk().await {
                Ok(Some(data)) => Some((v1::SubmitChunk { part: Some(Part::Data(data)) }, input)),
                Ok(None) if input.said_end => None,
                Ok(None) => {
                    input.said_end = true;
                    Some((v1::SubmitChunk { part: Some(Part::Data(Bytes::new())) }, input))
                }
                Err(error) => {
                    if let Some(failed) = input.failed.take() {
                        // The receiver is gone only when the call is over already.
                        let _ = failed.send(error);
                    }
                    pending().await
                }
            }
        })
    }

    /// The next piece to send; none at the end.
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        let Some(mut converter) = self.converter.take() else {
            self.fill().await?;
            let data = Bytes::copy_from_slice(&self.block[self.start..self.end]);
            self.start = self.end;
            return Ok((!data.is_empty()).then_some(data));
        };
        let data = self.converted(&mut converter).await;
        self.converter = Some(converter);
        data
    }

    async fn converted(&mut self, converter: &mut Converter) -> Result<Option<Bytes>> {
        let not_text = |source: &str, e| {
            let message = format!("{e} in {source}.");
            Error::local_hint(
                message,
                "Nothing was submitted. Convert the file to UTF-8 and submit it again.",
            )
        };
        let mut out = Vec::with_capacity(CHUNK_BYTES);
        while out.len() < CHUNK_BYTES && !self.at_end {
            self.fill().await?;
            if self.start == self.end {
                self.at_end = true;
                converter.finish(&mut out).map_err(|e| not_text(&self.source, e))?;
            } else {
                let input = &self.block[self.start..self.end];
                self.start += converter.feed(input, &mut out).map_err(|e| not_text(&self.source, e))?;
            }
        }
        Ok((!out.is_empty()).then(|| out.into()))
    }

    /// Reads the next block if this one is used up; at the end of the input it stays empty.
    async fn fill(&mut self) -> Result<()> {
        if self.start < self.end {
            return Ok(());
        }
        let n = self.reader.read(&mut self.block).await.map_err(|e| {
            Error::local(format!("Cannot read {} to its end: {e}. Nothing was submitted.", self.source))
        })?;
        self.read_bytes.fetch_add(n as u64, Ordering::Relaxed);
        (self.start, self.end) = (0, n);
        Ok(())
    }
}

/// One line on stderr that shows how far the upload is.
struct Progress<'a> {
    output: &'a Output,
    live: Option<Live<io::Stderr>>,
    name: String,
    total_bytes: Option<u64>,
    began: Instant,
}

impl<'a> Progress<'a> {
    fn new(source: &Source, output: &'a Output) -> Self {
        let name = match source {
            Source::File { path, .. } => {
                path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
            }
            Source::Stdin => "standard input".to_owned(),
        };
        Progress {
            output,
            live: output.shows_progress().then(|| Live::new(io::stderr())),
            name,
            total_bytes: source.size_bytes(),
            began: Instant::now(),
        }
    }

    fn draw(&mut self, read_bytes: u64) {
        let elapsed = self.began.elapsed();
        // A small file is gone before a line could be read.
        if elapsed < PROGRESS_INTERVAL * 3 {
            return;
        }
        let Some(live) = &mut self.live else { return };
        let screen = self.output.stderr_screen();
        let line = match self.total_bytes {
            Some(total) if read_bytes >= total => {
                format!("Sent {}; the controller checks and stores the rows.", units::bytes(total))
            }
            total => {
                let speed = read_bytes as f64 / elapsed.as_secs_f64();
                let of = total.map(|total| format!(" of {}", units::bytes(total))).unwrap_or_default();
                let tail = format!("{}{of} · {}/s", units::bytes(read_bytes), units::bytes(speed as u64));
                let head = format!("Sending {}", self.name);
                let room = screen.width.unwrap_or(80).saturating_sub(width(&head) + width(&tail) + 2).min(30);
                match total {
                    Some(total) if room >= 8 => {
                        let done = (read_bytes as f64 / total.max(1) as f64 * room as f64) as usize;
                        format!("{head} {}{} {tail}", "█".repeat(done), "░".repeat(room - done))
                    }
                    _ => format!("{head} {tail}"),
                }
            }
        };
        // Progress that cannot be shown is no reason to stop an upload.
        let _ = live.draw(&[screen.paint(Style::Plain, &screen.clip(&line))]);
    }

    fn clear(&mut self) {
        if let Some(live) = self.live.take().as_mut() {
            let _ = live.draw(&[]);
        }
    }
}
