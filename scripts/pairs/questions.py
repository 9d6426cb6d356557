"""Questions that people ask and the answers they get: what a question looks like, and plain texts of them.

Pages of HTML are read as manuals are (manuals.py), which asks here whether a line of one is a question.
"""

import re
from collections.abc import Iterator

Pair = tuple[str, str]

WORDS = range(3, 25)  # of a question
LONGEST = 160  # characters of one
ASKING = frozenset(  # a question has one of these; what has none is another language, or a sign
    "what how why who whom whose when where which is are was were am do does did can could should would will may must has have "
    "isn't aren't don't doesn't didn't can't couldn't shouldn't won't what's how's where's who's why's i i'm my".split()
)
MARK = re.compile(  # what stands before a question: bullets, its number, "Q:"
    r"""^([*#=>|+-]+\s*|[(\[]?(Q|Question)\s*[0-9]*[\s\])*]*[:.)-]\s*|Q[0-9.]+\s+|Subject:\s*
    |[([]?[A-Z]?[0-9]+([.-][0-9A-Z]{1,3})*[\])]?[.:)]*\s+(?=[A-Z"'(])|[([]?[A-Z]([.-][0-9]+)*[\]).:]+\s+)+""",
    re.IGNORECASE | re.VERBOSE,
)
ANSWER = re.compile(r"^\s*[(\[*]*(A|Answer)[0-9]*[\s\])*]*[:.)-]\s*")
LINE = re.compile(r"[-=~^*_#\s]*")  # drawn under or after a question


def asked(text: str) -> str | None:
    """The question that a heading or paragraph is, without its number; None: it is none."""
    text = MARK.sub("", " ".join(text.split()).rstrip("-=~^*_# ")).strip(' *_="|')
    words = [word.strip('",.?()') for word in text.lower().replace("’", "'").split()]
    letters = sum(character.isalpha() and character.isascii() for character in text)
    fits = len(words) in WORDS and len(text) <= LONGEST and letters >= 0.7 * len(text.replace(" ", ""))
    begins = text[:1].isupper() or text[:1] in ("'", '"')
    return text if text.endswith("?") and fits and begins and ASKING & set(words) else None


def without_mark(answer: str) -> str:
    """Without the "A:" before it."""
    return ANSWER.sub("", answer)


def read_text(text: str) -> Iterator[Pair]:
    """Each question of a plain text with the paragraphs up to the next, tables of contents with nothing or little."""
    question: str | None = None
    answer: list[str] = []
    for paragraph in re.split(r"\n[ \t]*\n+", text.replace("\r", "").expandtabs()):
        lines = paragraph.strip("\n").split("\n")
        begins = first_question(lines)
        if begins:
            if question is not None:
                yield question, " ".join(answer)
            (question, lines), answer = begins, []
        if question is not None:
            answer += [line for line in lines if not LINE.fullmatch(line)]
    if question is not None:
        yield question, " ".join(answer)


def first_question(lines: list[str]) -> tuple[str, list[str]] | None:
    """The question that a paragraph begins with, and its lines after it; None: it begins with none.

    What follows a question in its own paragraph must look like its answer: a line under it, "A:", an indent, or the question
    has a number. Otherwise the question is the first sentence of a text.
    """
    taken = next((n for n, line in enumerate(lines[:4], 1) if line.rstrip("-=~^*_# ").endswith("?")), 0)
    question = asked(" ".join(lines[:taken]))
    if question is None:
        return None
    first, rest = lines[0], lines[taken:]
    answered = not rest or LINE.fullmatch(rest[0]) or ANSWER.match(rest[0]) or MARK.match(first.strip())
    return (question, rest) if answered or (rest[0].startswith(" ") and not first.startswith(" ")) else None


# Debian packages with five questions or more in their files named FAQ, and not many megabytes for each.
FAQS = tuple(
    """
abcde aephea afterstep-data allegro4-doc analog antiword anyremote-doc apt-listbugs armagetronad-common asymptote-doc atlc
auctex autodia avr-libc awesfx awesome-doc awstats berkeley-express-doc bochs-doc bogofilter-common boswars bsh-doc btrbk
cdrkit-doc cfingerd charliecloud-doc chromium-bsu-data chrony collectl colplot composer conserver-client courier-doc
cowpatty cream crm114 cryptsetup cvs cvsd cxref cyrus-doc cyrus-sasl2-doc dar-docs devede dietlibc-doc digitemp dircproxy
dirvish dnsmasq-base-lua doctest-dev docutils-doc doxygen-doc dput dupeguru e2guardian ecryptfs-utils eggdrop-data
elpa-projectile emboss emscripten-doc enca enscript exim4-base exmh expect exuberant-ctags fasttext fbset fdutils fetchmail
fish-common fontforge-doc fonts-sil-gentiumplus fp-compiler-3.2.2 freetype2-doc fsa ftnchek g15daemon gammu-doc
gcc-h8300-hms gconf2 getmail6 gettext-doc git-doc gl-117 global gnarwl gnokii-common golang-github-gcla-gowid-dev gosa grace
graphicsmagick gri-html-doc gringotts gtimer hercules hpcc htdig-doc httptunnel hugs icewm-common ifmail ii inn2 ircd-irc2
irssi irssi-plugin-xmpp jabber-muc janus-doc java-policy jedit john keepass2-doc keyboard-configuration keystone-doc
ksh93u+m leafnode lepton-eda libace-7.0.8 libaldmb1 libambix-doc libapache-asp-perl libapache-mod-jk-doc libc-client2007e
libcastor-java-doc libcurl4-doc libfftw3-doc libfinal-dev libfox-1.6-doc libgammu-dev libgtk2.0-doc libhtmlparser-java-doc
libhttpunit-java-doc libimage-exiftool-perl libjs-jquery-flot libluabind-doc liblzo2-dev libmail-pop3client-perl
libnekohtml-java-doc libpam-mount libplib-doc libplplot-data libpodofo-dev libqglviewer-doc libquazip1-qt5-doc
libsitemesh-java-doc libsnmp-base libtut-dev libwebsocketpp-doc libwhisker2-perl libxbae-dev libxerces-c-doc linuxlogo
litmus lp-solve-doc lsof lynis maelstrom mailfilter makepp mapivi mc-data mcl-doc mdadm mesa-common-dev mgp mhonarc
mk-configure mksh mmark mmm-mode moria mp3wrap nano nedit netcdf-doc netris ngircd ngspice nmh noweb nut ocfs2-tools
openbabel openipmi openmsx-data openvswitch-doc partimage-doc pflogsumm pfstools php-predis pianobooster picolisp
popularity-contest postgresql-15-pglogical postgresql-15-plproxy ppp privoxy procmail procps proftpd-doc proofgeneral
psensor-common pure-ftpd-common pylint-doc pypy3-doc python-aiohttp-doc python-chardet-doc python-cryptography-doc
python-dipy-doc python-django-doc python-django-haystack-doc python-django-registration-doc python-django-tables2-doc
python-gabbi-doc python-h5py-doc python-ldap-doc python-lxml-doc python-pexpect-doc python-psycopg2-doc python-pygments-doc
python-pymongo-doc python-scrapy-doc python-sqlalchemy-doc python-wtforms-doc python3-abydos python3-cassandra-doc
python3-dnf-doc python3-pyx-doc qtpass r-doc-html rainbows rancid-cgi reprepro rkhunter rollup ruby-trollop samhain scite
scrot sdf-doc sed sendmail-doc seyon slack slirp slrn slurm-wlm-doc smstools snmptt sopwith splint-doc-html src2tex
starvoyager-data stl-manual stterm sup-mail swish-e sylpheed-doc talksoup.app tcllib tcptrace tcsh thunar-data
tightvncserver tintin++ tix tkcvs toybox ufo-core-doc unicon-imc2 unicorn vfu vifm vim-doc vnstat vsftpd vtprint vtun w3m
weechat-doc wit wmaker-common wmbiff xastir xboard xfrisk xindy-rules xinetd xiterm+thai xracer xtel xz-utils yersinia
yudit-doc zile zlib1g-dev zsh-doc
""".split()
)
