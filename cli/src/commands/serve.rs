//! `chandler serve`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use chandler_vram::Ledger;
use clap::Args;
use serde_json::json;

use super::App;
use crate::config::Config;
use crate::daemon::Controls;
use crate::engine::model_folder;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::http::{HttpError, Serving, Token, make_or_read_named_token, make_or_read_token};
use crate::logging::{self, Progress};
use crate::serve::{LoadError, Offer, Service, name_of, newest};
use crate::signals;

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Folder with a Hugging Face model, or the id of one on the hub [default: the newest model of
    /// the state directory, else model.path]
    #[arg(long, value_name = "DIR|ID")]
    model: Option<String>,
    /// Use this peft adapter
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// The address to listen on
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    address: IpAddr,
    /// The port; 0 takes a free one
    #[arg(long, default_value_t = 7918)]
    port: u16,
    /// The file with the token that clients send as their API key; made where it is missing
    /// [default: that of the state directory; without one a new token is printed]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Let every program of this machine ask without a token
    #[arg(long, conflicts_with = "token_file")]
    no_token: bool,
}

pub(super) fn serve(app: &App, args: &ServeArgs) -> Result<Exit, Failure> {
    let config = app.config_for(args.model.as_deref())?;
    logging::init(&config.log, &app.terminal, None)?;
    if args.no_token && !args.address.is_loopback() {
        let error = anyhow::anyhow!("without a token, {} would be open to others", args.address);
        let hint = "leave --no-token out, or listen on 127.0.0.1";
        return Err(Failure::new(Exit::Usage, error, Some(hint.to_owned())));
    }
    let token = token(app, args)?;
    let (key, given, file) = match &token {
        Some((_, Some(file))) => (format!("in {}", file.display()), None, Some(file.clone())),
        Some((token, None)) => (token.as_str().to_owned(), Some(token.as_str().to_owned()), None),
        None => ("none is asked for".to_owned(), None, None),
    };
    let token = token.map(|(token, _)| token);
    let hosts = config.http.hosts.clone();
    let serving = Serving { address: args.address, port: args.port, hosts, token };
    // A port that is taken is found out before the model is loaded.
    let bound = serving.bind().map_err(of_listening)?;
    let offer = offer(app, args, &config)?;
    let name = offer.name.clone();
    let ledger = Ledger::new();
    let controls = Controls::default();
    // The log says it, and there is nobody else to tell.
    let tell = Arc::new(|_: &str| {});
    let service = Arc::new(Service::of(&config, &ledger, offer, tell)?);
    let server = serving.start(bound, &service, &ledger).map_err(of_listening)?;
    signals::stop_on_signals(&controls)?;
    let url = format!("{}/v1", server.url());
    let said = json!({ "model": name, "url": url, "key": given, "key_file": file });
    app.print(&format!("model   {name}\nurl     {url}\nkey     {key}\n"), &said)?;
    while !controls.stop().is_requested() {
        controls.sleep(Duration::from_secs(3600));
    }
    service.end();
    drop(server);
    Ok(Exit::Ok)
}

/// The model that is named, else the newest of the state directory, else the configured one.
fn offer(app: &App, args: &ServeArgs, config: &Config) -> Result<Offer, Failure> {
    if args.model.is_none()
        && let Some(newest) = newest(&app.state)?
    {
        return Ok(Offer { adapter: args.adapter.clone(), ..newest });
    }
    let folder = model_folder(config, &Progress::new(&app.terminal))?;
    let named = config.model.path.as_ref();
    let name = named.map_or_else(String::new, |path| name_of(&path.0));
    Ok(Offer { folder, adapter: args.adapter.clone(), name })
}

/// The token, and the file that it stands in.
fn token(app: &App, args: &ServeArgs) -> Result<Option<(Token, Option<PathBuf>)>, Failure> {
    if args.no_token {
        return Ok(None);
    }
    if let Some(file) = &args.token_file {
        return Ok(Some((make_or_read_named_token(file)?, Some(file.clone()))));
    }
    let of_state = app.state.clone().open().ok().map(|state| state.token_file());
    Ok(Some(match of_state {
        Some(file) => (make_or_read_token(&file)?, Some(file)),
        None => {
            let token = Token::random().map_err(|source| HttpError::Random { source })?;
            (token, None)
        }
    }))
}

fn of_listening(error: HttpError) -> Failure {
    let hint = match &error {
        HttpError::Listen { .. } => {
            Some("give another --port, or 0 for a free one, or an --address of this machine".into())
        }
        error => error.hint(),
    };
    Failure::new(Exit::Error, error, hint)
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Engine(error) => (*error).into(),
            LoadError::NoRoom { .. } => {
                let hint = "raise memory.limit, end other programs that use the memory, or set \
                            model.dtype = \"bf16\"";
                Self::new(Exit::DoesNotFit, error, Some(hint.to_owned()))
            }
            LoadError::Thread { .. } => Self::new(Exit::Error, error, None),
        }
    }
}
