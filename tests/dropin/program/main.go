// A stand-in for the agents that configure WireGuard through wgctrl, as Antrea's and Kilo's do, so that tests can say in
// a few lines what such an agent does to an interface. It decides nothing: it does what it is told, one request a line on
// standard input, one answer a line on standard output, both JSON. The wgctrl client is one for the life of the process, as
// in the agents.
//
//	{"do": "link", "name": "wg0", "addresses": ["10.0.0.1/32"]}   ask the kernel for the link, put up with one that exists
//	{"do": "device", "name": "wg0"}                               what wgctrl reads
//	{"do": "devices"}                                             the names of all devices that wgctrl finds
//	{"do": "configure", "name": "wg0", "config": {...}}           what wgctrl writes
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

type request struct {
	Do        string   `json:"do"`
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"`
	Config    config   `json:"config"`
}

type config struct {
	PrivateKey   *string `json:"private_key"`
	ListenPort   *int    `json:"listen_port"`
	FirewallMark *int    `json:"fwmark"`
	ReplacePeers bool    `json:"replace_peers"`
	Peers        []peer  `json:"peers"`
}

// peer is one as it is set, and with the last four fields one as it is read. Keepalive is in seconds.
type peer struct {
	PublicKey         string   `json:"public_key"`
	Remove            bool     `json:"remove,omitempty"`
	UpdateOnly        bool     `json:"update_only,omitempty"`
	ReplaceAllowedIPs bool     `json:"replace_allowed_ips,omitempty"`
	PresharedKey      *string  `json:"preshared_key"`
	Endpoint          *string  `json:"endpoint"`
	Keepalive         *int     `json:"keepalive"`
	AllowedIPs        []string `json:"allowed_ips"`

	HandshakeTime   float64 `json:"handshake_time"`
	ReceiveBytes    int64   `json:"receive_bytes"`
	TransmitBytes   int64   `json:"transmit_bytes"`
	ProtocolVersion int     `json:"protocol_version"`
}

type device struct {
	Type         string `json:"type"`
	PrivateKey   string `json:"private_key"`
	PublicKey    string `json:"public_key"`
	ListenPort   int    `json:"listen_port"`
	FirewallMark int    `json:"fwmark"`
	Peers        []peer `json:"peers"`
}

// answer has an error, with its number where it is the kernel's, or what was asked for. Created is false for a link that
// existed before.
type answer struct {
	Error   string   `json:"error,omitempty"`
	Errno   int      `json:"errno,omitempty"`
	Created bool     `json:"created"`
	Device  *device  `json:"device,omitempty"`
	Devices []string `json:"devices,omitempty"`
}

func main() {
	client, err := wgctrl.New()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer client.Close()
	answers := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var asked request
		given := answer{}
		err := json.Unmarshal(lines.Bytes(), &asked)
		if err == nil {
			given, err = serve(client, asked)
		}
		if err != nil {
			given.Error = err.Error()
			var errno syscall.Errno
			if errors.As(err, &errno) {
				given.Errno = int(errno)
			}
		}
		if err := answers.Encode(given); err != nil {
			os.Exit(1)
		}
	}
}

func serve(client *wgctrl.Client, asked request) (given answer, err error) {
	switch asked.Do {
	case "link":
		given.Created, err = ensureLink(asked.Name, asked.Addresses)
	case "device":
		var found *wgtypes.Device
		if found, err = client.Device(asked.Name); err == nil {
			given.Device = describe(found)
		}
	case "devices":
		var found []*wgtypes.Device
		found, err = client.Devices()
		for _, each := range found {
			given.Devices = append(given.Devices, each.Name)
		}
	case "configure":
		var wanted wgtypes.Config
		if wanted, err = asked.Config.parse(); err == nil {
			err = client.ConfigureDevice(asked.Name, wanted)
		}
	default:
		err = fmt.Errorf("unknown request %q", asked.Do)
	}
	return given, err
}

// ensureLink asks for a WireGuard link, takes one of that name that exists, whatever its kind, and brings it up.
func ensureLink(name string, addresses []string) (created bool, err error) {
	link := &netlink.Wireguard{LinkAttrs: netlink.LinkAttrs{Name: name}}
	err = netlink.LinkAdd(link)
	if err != nil && !errors.Is(err, syscall.EEXIST) {
		return false, err
	}
	created = err == nil
	if err := netlink.LinkSetUp(link); err != nil {
		return created, err
	}
	for _, text := range addresses {
		address, err := netlink.ParseAddr(text)
		if err != nil {
			return created, err
		}
		if err := netlink.AddrReplace(link, address); err != nil {
			return created, err
		}
	}
	return created, nil
}

func (c config) parse() (wanted wgtypes.Config, err error) {
	wanted.ListenPort, wanted.FirewallMark, wanted.ReplacePeers = c.ListenPort, c.FirewallMark, c.ReplacePeers
	if wanted.PrivateKey, err = parseKey(c.PrivateKey); err != nil {
		return wanted, err
	}
	for _, each := range c.Peers {
		parsed, err := each.parse()
		if err != nil {
			return wanted, err
		}
		wanted.Peers = append(wanted.Peers, parsed)
	}
	return wanted, nil
}

func (p peer) parse() (wanted wgtypes.PeerConfig, err error) {
	wanted.Remove, wanted.UpdateOnly, wanted.ReplaceAllowedIPs = p.Remove, p.UpdateOnly, p.ReplaceAllowedIPs
	if wanted.PublicKey, err = wgtypes.ParseKey(p.PublicKey); err != nil {
		return wanted, err
	}
	if wanted.PresharedKey, err = parseKey(p.PresharedKey); err != nil {
		return wanted, err
	}
	if p.Endpoint != nil {
		if wanted.Endpoint, err = net.ResolveUDPAddr("udp", *p.Endpoint); err != nil {
			return wanted, err
		}
	}
	if p.Keepalive != nil {
		interval := time.Duration(*p.Keepalive) * time.Second
		wanted.PersistentKeepaliveInterval = &interval
	}
	for _, text := range p.AllowedIPs {
		_, network, err := net.ParseCIDR(text)
		if err != nil {
			return wanted, err
		}
		wanted.AllowedIPs = append(wanted.AllowedIPs, *network)
	}
	return wanted, nil
}

func parseKey(text *string) (*wgtypes.Key, error) {
	if text == nil {
		return nil, nil
	}
	key, err := wgtypes.ParseKey(*text)
	return &key, err
}

func describe(found *wgtypes.Device) *device {
	described := &device{
		Type:         found.Type.String(),
		PrivateKey:   found.PrivateKey.String(),
		PublicKey:    found.PublicKey.String(),
		ListenPort:   found.ListenPort,
		FirewallMark: found.FirewallMark,
		Peers:        []peer{},
	}
	for _, each := range found.Peers {
		preshared := each.PresharedKey.String()
		keepalive := int(each.PersistentKeepaliveInterval / time.Second)
		shown := peer{
			PublicKey:       each.PublicKey.String(),
			PresharedKey:    &preshared,
			Keepalive:       &keepalive,
			AllowedIPs:      []string{},
			ReceiveBytes:    each.ReceiveBytes,
			TransmitBytes:   each.TransmitBytes,
			ProtocolVersion: each.ProtocolVersion,
		}
		if each.Endpoint != nil {
			endpoint := each.Endpoint.String()
			shown.Endpoint = &endpoint
		}
		if !each.LastHandshakeTime.IsZero() {
			shown.HandshakeTime = float64(each.LastHandshakeTime.UnixNano()) / 1e9
		}
		for _, network := range each.AllowedIPs {
			shown.AllowedIPs = append(shown.AllowedIPs, network.String())
		}
		described.Peers = append(described.Peers, shown)
	}
	return described
}
