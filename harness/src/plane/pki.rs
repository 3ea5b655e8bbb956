//! The keys and certificates of one plane, made afresh for each and never re-used.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::{Duration, OffsetDateTime};

/// The one name that serving certificates carry for callers that reach the server through some
/// other address, such as a published port.
pub(crate) const SERVER_NAME: &str = "apiserver.laggard.local";

/// Certificates are valid from an hour ago, for clocks that jump, and for as long as envtest's.
const VALID_HOURS: i64 = 168;

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
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut parameters = parameters(name, &[]);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = parameters.self_signed(&key)?.pem();
        Ok(Self { certificate, issuer: Issuer::new(parameters, key) })
    }

    /// The authority's own certificate, PEM.
    pub(crate) fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A certificate for a user: the name is the common name, the groups are organizations.
    pub(crate) fn client(&self, name: &str, groups: &[&str]) -> Result<Pair, rcgen::Error> {
        let mut parameters = parameters(name, groups);
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(parameters)
    }

    /// A certificate for a server. It may act as a client too: etcd's JSON gateway calls the
    /// server itself with the server's certificate, and answers 503 without client rights.
    pub(crate) fn server(&self, name: &str, reached_as: &[SanType]) -> Result<Pair, rcgen::Error> {
        let mut parameters = parameters(name, &[]);
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
        let serving_ca = Authority::new("laggard-serving-ca")?;
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
        let client_ca = Authority::new("laggard-client-ca")?;
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
    pub(crate) fn new(host: &str) -> Result<Self, rcgen::Error> {
        let ca = Authority::new("laggard-etcd-ca")?;
        let reached_as = [
            dns("localhost")?,
            dns(host)?,
            SanType::IpAddress(std::net::Ipv4Addr::LOCALHOST.into()),
        ];
        let server = ca.server("etcd", &reached_as)?;
        let client = ca.client("kube-apiserver", &[])?;
        Ok(Self { ca, server, client })
    }
}

fn dns(name: &str) -> Result<SanType, rcgen::Error> {
    Ok(SanType::DnsName(name.try_into()?))
}

fn parameters(name: &str, groups: &[&str]) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    for group in groups {
        subject.push(DnType::OrganizationName, *group);
    }
    parameters.distinguished_name = subject;
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - Duration::HOUR;
    parameters.not_after = now + Duration::hours(VALID_HOURS);
    parameters.use_authority_key_identifier_extension = true;
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_printed_for_debugging_holds_a_key() {
        let text = format!("{:?}", (Pki::new().unwrap(), EtcdPki::new("etcd").unwrap()));
        assert!(!text.contains("PRIVATE"), "{text}");
    }
}
