//! Downloads from a server that misbehaves.

use std::sync::{Arc, Mutex};

use super::*;
use crate::assets::settings::Chosen;
use crate::assets::testing::mirror::sha512;
use crate::assets::testing::server::{Reply, Server};

/// No test waits for a clock that could be waited for in a shorter time.
pub(crate) const QUICK: Pace = Pace {
    tries: 4,
    first_pause: Duration::from_millis(1),
    longest_pause: Duration::from_secs(3),
    silence: Duration::from_millis(700),
    connect: Duration::from_secs(5),
};

pub(crate) fn settings(chosen: Chosen, variables: &[(&str, &str)]) -> Settings {
    let variable = |name: &str| {
        variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into())
    };
    Settings::resolve(&chosen, &variable).unwrap()
}

struct Fetched {
    result: Result<(), FetchError>,
    content: Vec<u8>,
    events: Vec<Event>,
}

/// Fetches `/file` and expects it to be `content`.
async fn fetch(server: &Server, content: &[u8]) -> Fetched {
    let settings = settings(Chosen::default(), &[]);
    let events = Arc::new(Mutex::new(Vec::new()));
    let of_events = Arc::clone(&events);
    let on_event = move |event| of_events.lock().unwrap().push(event);
    let fetcher = Fetcher::new(&settings, QUICK, &on_event).unwrap().unwrap();
    let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    let expected = Checksum::parse(&sha512(content)).unwrap();
    let url = server.url("/file").parse().unwrap();
    let result = fetcher.file("a file", &url, &path, &expected).await;
    let content = std::fs::read(&path).unwrap();
    let events = events.lock().unwrap().clone();
    Fetched { result, content, events }
}

fn content() -> Vec<u8> {
    (0..200_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn problem(result: Result<(), FetchError>) -> String {
    match result {
        Err(FetchError::Unreachable { problem } | FetchError::WrongContent { problem }) => problem,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_stopped() {
    let content = content();
    let whole = content.clone();
    let server = Server::start(move |request, before| {
        let reply = Reply::file(request, &whole);
        if before < 2 { reply.broken_off_after(100_000) } else { reply }
    });
    let fetched = fetch(&server, &content).await;
    fetched.result.unwrap();
    assert!(fetched.content == content);
    let ranges: Vec<_> =
        server.requests().iter().map(|it| it.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges[0], None);
    assert_eq!(ranges[1].as_deref(), Some("bytes=100000-"));
    assert_eq!(ranges[2].as_deref(), Some("bytes=200000-"));
    assert_eq!(ranges.len(), 3);
}

#[tokio::test]
async fn a_download_that_stalls_is_given_up_and_goes_on() {
    let content = content();
    let whole = content.clone();
    let server = Server::start(move |request, before| {
        let reply = Reply::file(request, &whole);
        if before == 0 { reply.stalled_after(1000) } else { reply }
    });
    let fetched = fetch(&server, &content).await;
    fetched.result.unwrap();
    assert!(fetched.content == content);
    let retried = fetched.events.iter().any(
        |event| matches!(event, Event::Retrying { problem, .. } if problem.contains("no byte came for 700ms")),
    );
    assert!(retried, "{:?}", fetched.events);
    assert_eq!(server.requests()[1].header("range"), Some("bytes=1000-"));
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_sends_all_again() {
    let content = content();
    let whole = content.clone();
    let server = Server::start(move |_, before| {
        let reply = Reply::ok(whole.clone());
        if before == 0 { reply.broken_off_after(1000) } else { reply }
    });
    let fetched = fetch(&server, &content).await;
    fetched.result.unwrap();
    assert!(fetched.content == content);
}

#[tokio::test]
async fn a_file_that_changed_between_two_parts_is_begun_anew() {
    let (old, new) = (content(), content()[..700_000].to_vec());
    let whole = new.clone();
    let server = Server::start(move |request, before| match before {
        0 => Reply::file(request, &old).broken_off_after(1000),
        _ => Reply::file(request, &whole),
    });
    let fetched = fetch(&server, &new).await;
    fetched.result.unwrap();
    assert!(fetched.content == new);
    // The same where the server gives its editions no names.
    let whole = new.clone();
    let other = vec![7; whole.len()];
    let server = Server::start(move |request, before| match before {
        0 => Reply::ok(other.clone()).broken_off_after(1000),
        _ => Reply::file(request, &whole),
    });
    let fetched = fetch(&server, &new).await;
    fetched.result.unwrap();
    assert!(fetched.content == new);
    assert_eq!(server.requests().len(), 3);
}

#[tokio::test]
async fn too_many_requests_and_server_errors_are_tried_again_as_the_server_asks() {
    let server = Server::start(|request, before| match before {
        0 => Reply::status(429).with("Retry-After", "1"),
        1 => Reply::status(503).with("Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT"),
        2 => Reply::status(500),
        _ => Reply::file(request, b"content"),
    });
    let begun = Instant::now();
    let fetched = fetch(&server, b"content").await;
    fetched.result.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "it did not wait");
    let pauses: Vec<_> = fetched
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Retrying { problem, after, .. } => Some((problem.clone(), *after)),
            _ => None,
        })
        .collect();
    assert_eq!(pauses[0].1, Duration::from_secs(1));
    assert!(pauses[0].0.contains("429"), "{pauses:?}");
    assert_eq!(pauses[1].1, Duration::ZERO);
    assert_eq!(pauses[2].1, Duration::from_millis(4));
}

#[tokio::test]
async fn a_server_that_asks_for_a_long_pause_or_never_recovers_is_given_up() {
    let server = Server::start(|_, _| Reply::status(429).with("Retry-After", "3600"));
    let error = problem(fetch(&server, b"content").await.result);
    assert!(error.contains("429") && error.contains("pause of 3600 s"), "{error}");
    assert_eq!(server.requests().len(), 1);
    let server = Server::start(|_, _| Reply::status(500));
    let error = problem(fetch(&server, b"content").await.result);
    assert!(error.contains("500") && error.contains("tried 4 times"), "{error}");
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test]
async fn what_is_not_there_and_what_is_forbidden_is_asked_for_once() {
    let server = Server::start(|_, _| Reply::status(404));
    let fetched = fetch(&server, b"content").await;
    assert!(matches!(fetched.result, Err(FetchError::Missing)));
    assert_eq!(server.requests().len(), 1);
    let server = Server::start(|_, _| Reply::status(403));
    let error = problem(fetch(&server, b"content").await.result);
    assert!(error.contains("403") && error.contains("LAGGARD_ASSETS_TOKEN"), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn another_content_than_promised_is_refused_without_another_try() {
    let server = Server::start(|request, _| Reply::file(request, b"something else"));
    let fetched = fetch(&server, b"content").await;
    let error = problem(fetched.result);
    assert!(error.contains("it comes to SHA-512 "), "{error}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_page_of_html_in_place_of_a_file_is_called_that() {
    let server =
        Server::start(|_, _| Reply::ok("<html>").with("Content-Type", "text/html; charset=utf-8"));
    let error = problem(fetch(&server, b"content").await.result);
    assert!(error.contains("a page of HTML"), "{error}");
}

#[tokio::test]
async fn a_redirect_is_followed_and_a_circle_is_left() {
    let server = Server::start(|request, _| match &*request.path {
        "/file" => Reply::status(302).with("Location", "/there"),
        _ => Reply::file(request, b"content"),
    });
    fetch(&server, b"content").await.result.unwrap();
    assert_eq!(server.paths(), ["/file", "/there"]);
    let server = Server::start(|_, _| Reply::status(302).with("Location", "/file"));
    let error = problem(fetch(&server, b"content").await.result);
    assert!(error.contains("redirects led nowhere"), "{error}");
}

#[tokio::test]
async fn the_token_is_sent_to_the_named_place_and_not_to_where_it_points() {
    let elsewhere = Server::start(|request, _| Reply::file(request, b"content"));
    let target = elsewhere.url("/file");
    let server = Server::start(move |_, _| Reply::status(302).with("Location", &*target));
    let mirror = server.url("");
    let settings = settings(
        Chosen { mirror: Some(mirror), ..Chosen::default() },
        &[("LAGGARD_ASSETS_TOKEN", "hunter2")],
    );
    let fetcher = Fetcher::new(&settings, QUICK, &|_| ()).unwrap().unwrap();
    let url = server.url("/file").parse().unwrap();
    let page = fetcher.page("a page", &url, 100).await.unwrap();
    assert_eq!(page, "content");
    assert_eq!(server.requests()[0].header("authorization"), Some("Bearer hunter2"));
    assert_eq!(elsewhere.requests()[0].header("authorization"), None);
}

#[tokio::test]
async fn a_page_that_does_not_end_is_left() {
    let server = Server::start(|_, _| Reply::ok(vec![b'x'; 1000]));
    let settings = settings(Chosen::default(), &[]);
    let fetcher = Fetcher::new(&settings, QUICK, &|_| ()).unwrap().unwrap();
    let url = server.url("/").parse().unwrap();
    match fetcher.page("a page", &url, 100).await {
        Err(FetchError::WrongContent { problem }) => assert!(problem.contains("100 bytes")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn nobody_there_is_said_after_two_tries() {
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    let settings = settings(Chosen::default(), &[]);
    let fetcher = Fetcher::new(&settings, QUICK, &|_| ()).unwrap().unwrap();
    let url = format!("http://127.0.0.1:{port}/").parse().unwrap();
    match fetcher.page("a page", &url, 100).await {
        Err(FetchError::Unreachable { problem }) => {
            assert!(problem.contains("refused") && problem.contains("tried 2 times"), "{problem}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_network_there_is_nothing_that_could_open_a_connection() {
    for chosen in [
        Chosen { offline: Some(true), ..Chosen::default() },
        Chosen { installed_only: Some(true), ..Chosen::default() },
    ] {
        let settings = settings(chosen, &[]);
        assert!(Fetcher::new(&settings, QUICK, &|_| ()).unwrap().is_none());
    }
}

#[test]
fn the_pause_asked_for_is_seconds_or_a_date() {
    let now = time::OffsetDateTime::from_unix_timestamp(1_795_593_600).unwrap();
    let headers =
        |text: &str| http::HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().unwrap())]);
    let pause = |text| pause_asked_for(&headers(text), now);
    assert_eq!(pause("120"), Some(Duration::from_secs(120)));
    assert_eq!(pause("Wed, 25 Nov 2026 08:01:30 GMT"), Some(Duration::from_secs(90)));
    assert_eq!(pause("Wed, 25 Nov 2026 07:00:00 GMT"), Some(Duration::ZERO));
    assert_eq!(pause("soon"), None);
    assert_eq!(pause_asked_for(&http::HeaderMap::new(), now), None);

    // The server's clock counts, whatever ours says.
    let mut dated = headers("Wed, 25 Nov 2026 08:01:30 GMT");
    dated.insert(header::DATE, "Wed, 25 Nov 2026 08:01:00 GMT".parse().unwrap());
    for jump in [-365, 0, 365] {
        let pause = pause_asked_for(&dated, now + time::Duration::days(jump));
        assert_eq!(pause, Some(Duration::from_secs(30)), "{jump} days");
    }
}
