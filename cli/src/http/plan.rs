//! `GET /api/plan/table` and `GET /api/plan.svg`: what fits into how much of the memory that a run
//! was planned for.

use std::sync::{Arc, PoisonError};

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use chandler_vram::Plan;
use serde::Deserialize;
use serde_json::{Value, json};

use super::read::{Answer, Asked};
use super::reply::Refusal;
use super::routes::App;
use crate::config::Config;
use crate::engine::model_here;
use crate::plan::{Paper, Table, draw, kept_plan, table_for};
use crate::store::{Store, StoreError};

/// Which run, the newest where it is not said, and on which ground it is drawn.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    run: Option<i64>,
    #[serde(default)]
    theme: Theme,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Theme {
    #[default]
    Light,
    Dark,
}

/// The table of a run, and the plan that is drawn above it. Making one takes a while, so the newest
/// is kept.
#[derive(Debug, Clone)]
pub(super) struct Drawn {
    run_id: i64,
    plan: Plan,
    table: Arc<Table>,
}

/// `GET /api/plan/table`, for rows of `data.max_length` tokens.
pub(super) async fn table(State(app): State<Arc<App>>, which: Asked<Which>) -> Answer<Value> {
    let Drawn { run_id, table, .. } = app.draw(which?.0.run).await?;
    Ok(Json(json!({ "run_id": run_id, "table": *table })))
}

/// `GET /api/plan.svg`.
pub(super) async fn picture(
    State(app): State<Arc<App>>,
    which: Asked<Which>,
) -> Result<Response, Refusal> {
    let Query(which) = which?;
    let drawn = app.draw(which.run).await?;
    let paper = match which.theme {
        Theme::Light => Paper::White,
        Theme::Dark => Paper::Dark,
    };
    let picture = draw(&drawn.plan, &drawn.table, paper);
    Ok(([(CONTENT_TYPE, "image/svg+xml")], picture).into_response())
}

impl App {
    /// The table of a run, as kept or anew.
    async fn draw(self: &Arc<Self>, run: Option<i64>) -> Result<Drawn, Refusal> {
        let (run_id, plan, config) = self.read(move |store| planned(store, run)).await?;
        let run_id = run_id.ok_or_else(|| Refusal::not_found("there is no run yet"))?;
        let plan = plan.ok_or_else(|| no_plan(run_id))?;
        let app = Arc::clone(self);
        let drawing = move || -> Result<Drawn, Refusal> {
            // Whoever asks meanwhile waits for the same table.
            let mut newest = app.drawn.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(drawn) = newest.as_ref().filter(|drawn| drawn.run_id == run_id) {
                return Ok(drawn.clone());
            }
            let config = config.unwrap_or_else(|| app.config.clone());
            let folder = model_here(&config, &app.state)?;
            let table = Arc::new(table_for(&config, &folder, plan.budget)?);
            Ok(newest.insert(Drawn { run_id, plan, table }).clone())
        };
        App::apart(drawing).await?
    }
}

type Planned = (Option<i64>, Option<Plan>, Option<Config>);

/// The run that is meant, its plan, and the configuration that it ran under.
fn planned(store: &Store, run: Option<i64>) -> Result<Planned, StoreError> {
    let Some(id) = run.map_or_else(|| store.newest_run(), |id| Ok(Some(id)))? else {
        return Ok((None, None, None));
    };
    let plan = store.run(id)?.and_then(|run| kept_plan(run.plan?));
    let config = store.run_config(id)?.and_then(|config| serde_json::from_value(config).ok());
    Ok((Some(id), plan, config))
}

fn no_plan(run: i64) -> Refusal {
    let error = format!("there is no plan of a run {run}");
    Refusal::new(StatusCode::NOT_FOUND, error, "a run is planned once its file was read")
}
