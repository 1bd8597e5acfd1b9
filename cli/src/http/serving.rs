//! The server of `chandler serve`: `/v1/…`, `/metrics` and `/healthz`, without a page or a database.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use chandler_vram::{Ledger, NvmlMeter};

use super::guard::{self, Guard};
use super::limits::Limits;
use super::token::Token;
use super::v1::{self, V1};
use super::{HttpError, HttpServer, listen, prometheus};
use crate::daemon::LiveMemory;
use crate::serve::{Refusal, Service};

/// Where and for whom `chandler serve` listens.
#[derive(Debug)]
pub(crate) struct Serving {
    pub(crate) address: IpAddr,
    /// 0 takes a free one.
    pub(crate) port: u16,
    /// Names by which it may be asked for besides `localhost` and the address.
    pub(crate) hosts: Vec<String>,
    /// `None` lets everybody ask who reaches the address.
    pub(crate) token: Option<Token>,
}

/// What the answers are made from.
struct Door {
    guard: Guard,
    limits: Limits,
    service: Arc<Service>,
    ledger: Ledger,
    nvml: NvmlMeter,
}

impl Serving {
    /// Takes the port. Unlike the daemon's, it is not exchanged for another: clients know it.
    pub(crate) fn bind(&self) -> Result<(TcpListener, SocketAddr), HttpError> {
        listen::bind_exactly(SocketAddr::new(self.address, self.port))
    }

    /// Answers requests from now on.
    pub(crate) fn start(
        self,
        (listener, address): (TcpListener, SocketAddr),
        service: &Arc<Service>,
        ledger: &Ledger,
    ) -> Result<HttpServer, HttpError> {
        let limits = Limits::default();
        let guard = Guard::without_page(self.token, address, &self.hosts)?;
        let service = Arc::clone(service);
        let (ledger, nvml) = (ledger.clone(), NvmlMeter::new());
        let door = Arc::new(Door { guard, limits, service, ledger, nvml });
        HttpServer::run(listener, address, router(door), limits, None)
    }
}

fn router(door: Arc<Door>) -> Router {
    let v1 = V1 { service: Arc::clone(&door.service), patience: door.limits.answer_patience };
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics))
        .merge(v1::router(v1))
        .fallback(nothing)
        .layer(from_fn_with_state(Arc::clone(&door), stand))
        .with_state(door)
}

async fn stand(State(door): State<Arc<Door>>, request: Request, next: Next) -> Response {
    guard::admit(&door.guard, door.limits.answer_patience, request, next).await
}

async fn nothing(request: Request) -> Refusal {
    let message = format!("There is nothing at {}: the API is below /v1", request.uri().path());
    Refusal { status: 404, ..Refusal::invalid(None, message) }
}

/// `GET /metrics`: who waits, and the memory.
async fn metrics(State(door): State<Arc<Door>>) -> Response {
    let (waiting, answering) = door.service.load();
    let memory = LiveMemory::read(&door.ledger, &door.nvml);
    let text = prometheus::render_serving(waiting, answering, &memory);
    ([(CONTENT_TYPE, prometheus::TEXT)], text).into_response()
}
