//! What a template is worth: when a user and a custom resource are served, against the first readiness step of the same
//! start.

#![expect(clippy::print_stdout, reason = "a bench is a program that prints")]

mod figures;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::DynamicObject;
use laggard::Plane;
use laggard::plane::Template;
use serde_json::{Value, from_value, json};

use figures::{Figures, Limit, middle, spread};

const ROUNDS: usize = 7;

const WIDGETS: &str = "/apis/bench.test.local/v1/namespaces/team/widgets";

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// The server makes its default roles within three seconds; a user who is not served by then is not.
const SERVED_WITHIN: Duration = Duration::from_secs(60);

/// From the first spawn, in seconds.
struct Times {
    ready: f64,
    user: f64,
    resource: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut figures = Figures::of("template");
    // Once without a figure: it may have to be made.
    measured(Template::Documents).await?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        with.push(measured(Template::Documents).await?);
        without.push(measured(Template::Off).await?);
    }
    for (name, times, limit) in
        [("with", &with, Limit::AtMost(1.1)), ("without", &without, Limit::None)]
    {
        let mut ready: Vec<_> = times.iter().map(|it| Duration::from_secs_f64(it.ready)).collect();
        let (ready, _) = spread(&mut ready);
        figures.time(&format!("first readiness step, {name} a template"), ready, None);
        let user = middle(times.iter().map(|it| it.user / it.ready).collect());
        figures.ratio(&format!("a user is served, {name} a template"), user, limit);
        let resource = middle(times.iter().map(|it| it.resource / it.ready).collect());
        figures.ratio(&format!("a custom resource is made, {name} a template"), resource, limit);
    }
    figures.finish()
}

async fn measured(template: Template) -> Result<Times> {
    let builder = Plane::builder().crds([widgets()?]).documents(documents()?).template(template);
    let begun = Instant::now();
    let plane = builder.start().await?;
    let timings = *plane.timings();
    let client = plane.client()?;
    let widget = json!({
        "apiVersion": "bench.test.local/v1", "kind": "Widget", "metadata": { "name": "w" },
    });
    ensure!(request(&client, None, WIDGETS, &widget).await?, "no custom resource");
    let resource = begun.elapsed();
    // What one of the default roles allows to everybody.
    let review = json!({ "spec": { "resourceAttributes": { "resource": "pods", "verb": "get" } } });
    while !request(&client, Some("ann"), REVIEWS, &review).await? {
        ensure!(begun.elapsed() < SERVED_WITHIN, "ann is not served after {SERVED_WITHIN:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let user = begun.elapsed();
    plane.stop().await?;
    let before = timings.assets + timings.template + timings.preparation;
    let since = |time: Duration| time.saturating_sub(before).as_secs_f64();
    Ok(Times { ready: timings.ready.as_secs_f64(), user: since(user), resource: since(resource) })
}

/// Whether it was allowed.
async fn request(client: &Client, user: Option<&str>, path: &str, body: &Value) -> Result<bool> {
    let mut request = http::Request::post(path);
    if let Some(user) = user {
        request = request
            .header("Impersonate-User", user)
            .header("Impersonate-Group", "system:authenticated");
    }
    let request = request
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body.to_string().into_bytes())?;
    match client.request::<Value>(request).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(false),
        Err(error) => Err(error).context(path.to_owned()),
    }
}

fn widgets() -> Result<CustomResourceDefinition> {
    Ok(from_value(json!({
        "metadata": { "name": "widgets.bench.test.local" },
        "spec": {
            "group": "bench.test.local", "scope": "Namespaced",
            "names": { "kind": "Widget", "plural": "widgets", "singular": "widget" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": {
                "openAPIV3Schema": { "type": "object" },
            } }],
        },
    }))?)
}

fn documents() -> Result<Vec<DynamicObject>> {
    Ok(from_value(json!([
        { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "team" } },
    ]))?)
}
