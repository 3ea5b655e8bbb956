//! The keys and certificates of one plane, made afresh for each and never re-used.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

/// The one name that serving certificates carry for callers that reach the server through some
/// other address, such as a published port.
pub(crate) const SERVER_NAME: &str = "apiserver.laggard.local";

/// How far back, and how far ahead, the clock may jump in the life of a plane. The keys go with it,
/// so a long validity harms nobody.
const VALID_BEFORE: Duration = Duration::days(30);
const VALID_AFTER: Duration = Duration::days(365);

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// Never prints the key.
impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").finish_non_exhaustive()
    }
}

/// A certificate authority that lives in memory only.
pub(crate) struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    made: OffsetDateTime,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    fn new(name: &str, made: OffsetDateTime) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut parameters = parameters(name, &[], made);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = parameters.self_signed(&key)?.pem();
        Ok(Self { certificate, issuer: Issuer::new(parameters, key), made })
    }

    /// The authority's own certificate, PEM.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate for a user: the name is the common name, the groups are organizations.
    pub(crate) fn client(&self, name: &str, groups: &[&str]) -> Result<Pair, rcgen::Error> {
        let mut parameters = parameters(name, groups, self.made);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(parameters)
    }

    /// A certificate for a server. It may act as a client too: etcd's JSON gateway calls the
    /// server itself with the server's certificate, and answers 503 without client rights.
    pub(crate) fn server(&self, name: &str, reached_as: &[SanType]) -> Result<Pair, rcgen::Error> {
        let mut parameters = parameters(name, &[], self.made);
        parameters.subject_alt_names = reached_as.to_vec();
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(parameters)
    }

    fn sign(&self, mut parameters: CertificateParams) -> Result<Pair, rcgen::Error> {
        parameters.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.issuer)?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }
}

/// All that the servers of one plane need.
#[derive(Debug)]
pub(crate) struct Pki {
    pub(crate) serving_ca: Authority,
    pub(crate) serving: Pair,
    pub(crate) client_ca: Authority,
    pub(crate) admin: Pair,
    pub(crate) service_accounts: ServiceAccountKeys,
}

/// The pair that signs service account tokens, PEM.
#[derive(Clone)]
pub(crate) struct ServiceAccountKeys {
    pub(crate) public: String,
    pub(crate) private: String,
}

impl std::fmt::Debug for ServiceAccountKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServiceAccountKeys").finish_non_exhaustive()
    }
}

impl Pki {
    pub(crate) fn new() -> Result<Self, rcgen::Error> {
        Self::made_at(OffsetDateTime::now_utc())
    }

    fn made_at(now: OffsetDateTime) -> Result<Self, rcgen::Error> {
        let serving_ca = Authority::new("laggard-serving-ca", now)?;
        let reached_as = [
            dns("localhost")?,
            dns("kubernetes")?,
            dns("kubernetes.default")?,
            dns("kubernetes.default.svc")?,
            dns("kubernetes.default.svc.cluster.local")?,
            dns(SERVER_NAME)?,
            SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
        ];
        let serving = serving_ca.server("kube-apiserver", &reached_as)?;
        let client_ca = Authority::new("laggard-client-ca", now)?;
        let admin = client_ca.client("laggard-admin", &["system:masters"])?;
        let keys = KeyPair::generate()?;
        let service_accounts =
            ServiceAccountKeys { public: keys.public_key_pem(), private: keys.serialize_pem() };
        Ok(Self { serving_ca, serving, client_ca, admin, service_accounts })
    }
}

/// The certificates of an etcd that is reached over TCP.
#[derive(Debug)]
pub(crate) struct EtcdPki {
    pub(crate) ca: Authority,
    pub(crate) server: Pair,
    pub(crate) client: Pair,
}

impl EtcdPki {
    #[cfg_attr(
        not(any(feature = "container", test)),
        expect(dead_code, reason = "child processes reach etcd through a socket")
    )]
    pub(crate) fn new() -> Result<Self, rcgen::Error> {
        let ca = Authority::new("laggard-etcd-ca", OffsetDateTime::now_utc())?;
        let reached_as =
            [dns("localhost")?, SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into())];
        let server = ca.server("etcd", &reached_as)?;
        let client = ca.client("kube-apiserver", &[])?;
        Ok(Self { ca, server, client })
    }
}

fn dns(name: &str) -> Result<SanType, rcgen::Error> {
    Ok(SanType::DnsName(name.try_into()?))
}

fn parameters(name: &str, groups: &[&str], made: OffsetDateTime) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    for group in groups {
        subject.push(DnType::OrganizationName, *group);
    }
    parameters.distinguished_name = subject;
    // A clock that has lost its time begins in 1970, where a certificate can begin, too.
    parameters.not_before = (made - VALID_BEFORE).max(OffsetDateTime::UNIX_EPOCH);
    parameters.not_after = made + VALID_AFTER;
    parameters.use_authority_key_identifier_extension = true;
    parameters
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier as _;
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, UnixTime};
    use rustls::server::WebPkiClientVerifier;

    use super::*;

    #[test]
    fn nothing_that_is_printed_for_debugging_holds_a_key() {
        let text = format!("{:?}", (Pki::new().unwrap(), EtcdPki::new().unwrap()));
        assert!(!text.contains("PRIVATE"), "{text}");
    }

    /// Whether a client trusts the server, and the server the client, when it is `now`.
    fn trusted(pki: &Pki, now: OffsetDateTime) -> bool {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        let roots = |authority: &Authority| {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(der(authority.certificate())).unwrap();
            Arc::new(roots)
        };
        let since = Duration::seconds(now.unix_timestamp()).try_into().unwrap();
        let now = UnixTime::since_unix_epoch(since);
        let servers = WebPkiServerVerifier::builder_with_provider(
            roots(&pki.serving_ca),
            Arc::clone(&provider),
        );
        let name = SERVER_NAME.try_into().unwrap();
        let serving = der(&pki.serving.certificate);
        let server = servers.build().unwrap().verify_server_cert(&serving, &[], &name, &[], now);
        let clients = WebPkiClientVerifier::builder_with_provider(roots(&pki.client_ca), provider);
        let admin = der(&pki.admin.certificate);
        let client = clients.build().unwrap().verify_client_cert(&admin, &[], now);
        assert_eq!(server.is_ok(), client.is_ok(), "{server:?} {client:?}");
        server.is_ok()
    }

    #[test]
    fn certificates_are_good_after_the_clock_has_jumped() {
        let made = OffsetDateTime::from_unix_timestamp(1_795_593_600).unwrap();
        let pki = Pki::made_at(made).unwrap();
        for days in [-29, -1, 0, 1, 364] {
            assert!(trusted(&pki, made + Duration::days(days)), "{days} days");
        }
        for days in [-31, 366] {
            assert!(!trusted(&pki, made + Duration::days(days)), "{days} days");
        }
    }

    #[test]
    fn a_clock_that_has_lost_its_time_makes_certificates_for_that_time() {
        for made in [OffsetDateTime::UNIX_EPOCH, OffsetDateTime::UNIX_EPOCH + Duration::HOUR] {
            assert!(trusted(&Pki::made_at(made).unwrap(), made));
        }
    }
}
