//! The dashboard and the alerts name metrics that exist, and a real Prometheus that scrapes a real freshd answers each of
//! their queries. Without Debian's package `prometheus` the second part is skipped, loudly.

mod support;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use freshd::metrics::{self, Kind};
use serde_json::Value;
use support::daemon::Config;
use support::{Answer, Freshd, Rotating, ScriptedServer, eventually, within};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

fn shipped(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn text(file: &str) -> String {
    std::fs::read_to_string(shipped(file)).expect("it is shipped")
}

/// Every query of the dashboard, with what Grafana puts in for its variables.
fn queries() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&text("config/grafana/freshd.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    targets
        .map(|target| {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$__rate_interval", "1m");
            query.replace("$provider", ".*").replace("$instance", ".*")
        })
        .collect()
}

/// The words of a text that begin with `freshd_`.
fn named(text: &str) -> Vec<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("freshd_"))
        .collect()
}

#[test]
fn dashboard_and_alerts_name_only_metrics_that_exist_and_the_dashboard_shows_nearly_all() {
    let mut exist = Vec::new();
    for metric in metrics::ALL {
        match metric.kind {
            Kind::Histogram => {
                exist.extend(["bucket", "sum", "count"].map(|s| format!("{}_{s}", metric.name)))
            }
            Kind::Counter | Kind::Gauge => exist.push(metric.name.to_owned()),
        }
    }
    let dashboard = queries().join("\n");
    let alerts = text("config/prometheus/alerts.yml");
    for name in named(&dashboard).into_iter().chain(named(&alerts)) {
        assert!(
            exist.iter().any(|known| known == name),
            "{name} is no metric"
        );
    }
    for metric in metrics::ALL {
        let told_elsewhere = [metrics::BUILD_INFO.name, metrics::START_TIME.name];
        let shown = named(&dashboard)
            .iter()
            .any(|name| name.starts_with(metric.name));
        assert!(
            shown || told_elsewhere.contains(&metric.name),
            "{} is on no panel",
            metric.name
        );
    }
}

/// Whether a program is there; says so loudly if not.
fn installed(program: &str) -> bool {
    let there = std::process::Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !there {
        eprintln!("SKIPPED: there is no {program}; apt-get install prometheus");
    }
    there
}

#[test]
fn promtool_finds_the_alerts_right_and_they_fire_when_they_should() {
    if !installed("promtool") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for file in [
        "config/prometheus/alerts.yml",
        "tests/support/alerts_test.yml",
    ] {
        let name = Path::new(file).file_name().unwrap();
        std::fs::copy(shipped(file), dir.path().join(name)).unwrap();
    }
    for arguments in [
        ["check", "rules", "alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ] {
        let said = std::process::Command::new("promtool")
            .args(arguments)
            .current_dir(dir.path())
            .output()
            .unwrap();
        let said_text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
        assert!(said.status.success(), "{arguments:?}: {said_text}");
    }
}

/// A Prometheus that scrapes one address every second; it ends with its handle.
struct Prometheus {
    _child: Child,
    _dir: tempfile::TempDir,
    api: String,
    client: reqwest::Client,
}

impl Prometheus {
    async fn start(target: &str) -> Prometheus {
        let dir = tempfile::tempdir().unwrap();
        let rules = shipped("config/prometheus/alerts.yml");
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [{rules:?}]\n\
             scrape_configs: [{{job_name: freshd, static_configs: [{{targets: [{target:?}]}}]}}]\n"
        );
        std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
        let mut child = Command::new("prometheus")
            .arg(format!(
                "--config.file={}/prometheus.yml",
                dir.path().display()
            ))
            .arg(format!("--storage.tsdb.path={}/data", dir.path().display()))
            .args(["--web.listen-address=127.0.0.1:0", "--log.level=info"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = within("Prometheus to listen", async {
            loop {
                let line = log.next_line().await.unwrap().expect("Prometheus runs");
                // It says before that at which address it tries to.
                let Some((_, rest)) = line.split_once("msg=\"Listening on\" address=") else {
                    continue;
                };
                break rest.split_whitespace().next().unwrap().to_owned();
            }
        })
        .await;
        // Read on, or it would stand still when the pipe is full.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Prometheus {
            _child: child,
            _dir: dir,
            api: format!("http://{address}/api/v1"),
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
        }
    }

    async fn get(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let mut url = url::Url::parse(&format!("{}/{path}", self.api)).unwrap();
        url.query_pairs_mut().extend_pairs(query);
        match self.client.get(url).send().await {
            Ok(answer) => answer.json().await.unwrap_or(Value::Null),
            Err(_) => Value::Null,
        }
    }

    /// Waits until a query has a result, and returns it. What Prometheus calls wrong is an error at once.
    async fn result(&self, query: &str) -> Vec<Value> {
        eventually(query, || async {
            let answer = self.get("query", &[("query", query)]).await;
            assert_ne!(answer["status"], "error", "{query}: {answer}");
            let result = answer["data"]["result"].as_array()?;
            (!result.is_empty()).then(|| result.clone())
        })
        .await
    }
}

#[tokio::test]
async fn a_real_prometheus_answers_every_query_of_the_dashboard_and_evaluates_every_alert() {
    if !installed("prometheus") {
        return;
    }
    let rotating = Rotating::new(3600);
    let server = ScriptedServer::start(rotating.script()).await;
    let refusing = ScriptedServer::start(|_| Answer::error(401, "invalid_client")).await;
    let config = Config::new()
        .provider("acme", &server, "rotation = \"strict\"")
        .provider("refusing", &refusing, "")
        .daemon("metrics-listen = \"127.0.0.1:0\"");
    let freshd = Freshd::start(config).await;
    freshd
        .import("anna", "acme", &rotating.issue("anna").import_expired())
        .await;
    freshd.token("anna", "acme").await.token();
    let tokens = Rotating::new(60).issue("anna").import_expired();
    freshd.import("anna", "refusing", &tokens).await;
    freshd.wait_for_provider("refusing", "stopped").await;
    let line = freshd.wait_for_log("metrics-listening").await;
    let address = line.split("address=").nth(1).unwrap().trim();

    let prometheus = Prometheus::start(address).await;
    let queries = queries();
    assert!(queries.len() >= 20, "{queries:#?}");
    for query in &queries {
        prometheus.result(query).await;
    }
    let served = prometheus
        .result("freshd_tokens_served_total{provider=\"acme\"}")
        .await;
    assert_eq!(served[0]["value"][1], "1", "{served:?}");

    let rules = eventually("every alert to be evaluated", || async {
        let answer = prometheus.get("rules", &[]).await;
        let rules = answer["data"]["groups"][0]["rules"].as_array()?.clone();
        let evaluated = rules.iter().all(|rule| rule["health"] != "unknown");
        (!rules.is_empty() && evaluated).then_some(rules)
    })
    .await;
    for rule in &rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    let firing =
        "ALERTS{alertname=\"FreshdProviderStopped\",provider=\"refusing\",alertstate=\"firing\"}";
    prometheus.result(firing).await;
    let lost = prometheus
        .get(
            "query",
            &[(
                "query",
                "ALERTS{alertname!=\"FreshdProviderStopped\",alertstate=\"firing\"}",
            )],
        )
        .await;
    assert_eq!(
        lost["data"]["result"],
        serde_json::json!([]),
        "nothing else fires"
    );
}
