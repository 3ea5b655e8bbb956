//! An HTTP server of the tests, on loopback, that also misbehaves as it is told. The tests of the
//! command include this file, too.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

type Handler = Box<dyn Fn(&Request, usize) -> Reply + Send + Sync>;

pub(crate) struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    handler: Handler,
    requests: Mutex<Vec<Request>>,
    /// Connections that stay open and say nothing, and whether the server is to end.
    open: Mutex<(Vec<TcpStream>, bool)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) path: String,
    headers: BTreeMap<String, String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What the server says, and what it then does not do.
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    sent: usize,
    then_stalls: bool,
}

impl Reply {
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        Self { status: 200, headers: Vec::new(), sent: body.len(), body, then_stalls: false }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::ok("") }
    }

    /// A file with an entity tag, or the part of it that was asked for.
    pub(crate) fn file(request: &Request, body: &[u8]) -> Self {
        let tag = format!("\"{}\"", body.len());
        let of_this = request.header("if-range").is_none_or(|asked| asked == tag);
        let from = request
            .header("range")
            .filter(|_| of_this)
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let reply = match from {
            Some(from) if from < body.len() => {
                let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
                let reply = Self { status: 206, ..Self::ok(&body[from..]) };
                reply.with("Content-Range", range)
            }
            Some(_) => Self::status(416),
            None => Self::ok(body),
        };
        reply.with("ETag", tag)
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Promises all and breaks off.
    pub(crate) fn broken_off_after(mut self, bytes: usize) -> Self {
        self.sent = bytes.min(self.body.len());
        self
    }

    /// Promises all and says no more.
    pub(crate) fn stalled_after(mut self, bytes: usize) -> Self {
        self.then_stalls = true;
        self.broken_off_after(bytes)
    }
}

impl Server {
    /// `handler` is told the request, and how many there were of that path before.
    pub(crate) fn start(
        handler: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            handler: Box::new(handler),
            requests: Mutex::default(),
            open: Mutex::default(),
        });
        let of_thread = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if of_thread.open.lock().unwrap().1 {
                    return;
                }
                let shared = Arc::clone(&of_thread);
                // A client that goes away in the middle is none of our business.
                std::thread::spawn(move || stream.and_then(|stream| shared.serve(stream)));
            }
        });
        Self { address, shared }
    }

    /// Serves these files, and 404 for all others.
    pub(crate) fn of_files(files: BTreeMap<String, Vec<u8>>) -> Self {
        Self::start(move |request, _| match files.get(&request.path) {
            Some(body) => Reply::file(request, body),
            None => Reply::status(404),
        })
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// The paths that were asked for, in order.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.requests().into_iter().map(|request| request.path).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        *self.shared.open.lock().unwrap() = (Vec::new(), true);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(&stream).lines();
        let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let request = Request { path, headers };
        let before = {
            let mut requests = self.requests.lock().unwrap();
            requests.push(request.clone());
            requests.iter().filter(|other| other.path == request.path).count() - 1
        };
        let reply = (self.handler)(&request, before);
        let mut head = format!(
            "HTTP/1.1 {} .\r\nConnection: close\r\nContent-Length: {}\r\n",
            reply.status,
            reply.body.len()
        );
        for (name, value) in &reply.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let mut writer = &stream;
        writer.write_all(head.as_bytes())?;
        writer.write_all(b"\r\n")?;
        writer.write_all(&reply.body[..reply.sent])?;
        writer.flush()?;
        if reply.then_stalls {
            self.open.lock().unwrap().0.push(stream);
        }
        Ok(())
    }
}
