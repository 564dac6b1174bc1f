"""What is asked of real things, in which words, and what is true: the source of the search tasks.

The facts are general knowledge. An entity's line holds its values in the order of its kind's
attributes; a dash stands for what is unknown, disputed or changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Value = Literal["name", "word", "year", "number"]


@dataclass(frozen=True)
class Attribute:
    """A property of a kind of thing, as documents state it and questions ask for it.

    `{e}` stands for the entity and `{v}` for the value. The last statement and the last question
    are never seen in training.
    """

    name: str
    value: Value
    statements: tuple[str, str, str]
    questions: tuple[str, str, str]


KINDS: dict[str, tuple[Attribute, ...]] = {
    "element": (
        Attribute(
            "symbol",
            "name",
            (
                "The symbol of {e} is {v}.",
                "The symbol used for {e} is {v}.",
                "Chemists write {v} for {e}.",
            ),
            (
                "What is the symbol of {e}?",
                "Which symbol does {e} have?",
                "Which letters stand for {e}, its symbol?",
            ),
        ),
        Attribute(
            "atomic number",
            "number",
            (
                "The atomic number of {e} is {v}.",
                "The atomic number that {e} has is {v}.",
                "The number of protons of {e}, its atomic number, is {v}.",
            ),
            (
                "What is the atomic number of {e}?",
                "Which atomic number does {e} have?",
                "How many protons, by its atomic number, does {e} have?",
            ),
        ),
        Attribute(
            "family",
            "word",
            (
                "The family of {e} is the {v}.",
                "The family to which {e} belongs is the {v}.",
                "{e} is one of the {v}, which is its family.",
            ),
            (
                "What is the family of {e}?",
                "To which family does {e} belong?",
                "Name the family of {e}.",
            ),
        ),
    ),
    "country": (
        Attribute(
            "capital",
            "name",
            (
                "The capital of {e} is {v}.",
                "The capital city of {e} is {v}.",
                "{v} serves {e} as its capital.",
            ),
            (
                "What is the capital of {e}?",
                "Which city is the capital of {e}?",
                "Name the capital of {e}.",
            ),
        ),
        Attribute(
            "currency",
            "word",
            (
                "The currency of {e} is the {v}.",
                "The currency used in {e} is the {v}.",
                "The {v} is the currency in which {e} pays.",
            ),
            (
                "What is the currency of {e}?",
                "Which currency does {e} use?",
                "In which currency do people in {e} pay?",
            ),
        ),
        Attribute(
            "language",
            "name",
            (
                "The main language of {e} is {v}.",
                "The main language spoken in {e} is {v}.",
                "{v} is the language that most people in {e} speak.",
            ),
            (
                "What is the main language of {e}?",
                "Which language is spoken in {e}?",
                "Name the language that most people in {e} speak.",
            ),
        ),
        Attribute(
            "continent",
            "name",
            (
                "The continent of {e} is {v}.",
                "The continent on which {e} lies is {v}.",
                "{v} is the continent where {e} is found.",
            ),
            (
                "What is the continent of {e}?",
                "On which continent does {e} lie?",
                "On what continent is {e} found?",
            ),
        ),
    ),
    "moon": (
        Attribute(
            "planet",
            "name",
            (
                "The planet of {e} is {v}.",
                "The planet that {e} orbits is {v}.",
                "{v} is the planet around which {e} moves.",
            ),
            (
                "What is the planet of {e}?",
                "Which planet does {e} orbit?",
                "Around which planet does {e} move?",
            ),
        ),
        Attribute(
            "discoverer",
            "name",
            (
                "The discoverer of {e} is {v}.",
                "The discoverer named for {e} is {v}.",
                "{v} is the one who discovered {e}.",
            ),
            (
                "Who is the discoverer of {e}?",
                "Who discovered {e}?",
                "By whom was {e} discovered?",
            ),
        ),
        Attribute(
            "discovery year",
            "year",
            (
                "The discovery year of {e} is {v}.",
                "The discovery year given for {e} is {v}.",
                "The year {v} saw the discovery of {e}.",
            ),
            (
                "What is the discovery year of {e}?",
                "In what year was {e} discovered?",
                "Which year saw the discovery of {e}?",
            ),
        ),
    ),
    "river": (
        Attribute(
            "mouth",
            "name",
            (
                "The mouth of {e} is the {v}.",
                "The mouth at which {e} ends is the {v}.",
                "{e} ends at its mouth in the {v}.",
            ),
            (
                "What is the mouth of {e}?",
                "Where is the mouth of {e}?",
                "Into what does {e} flow at its mouth?",
            ),
        ),
        Attribute(
            "continent",
            "name",
            (
                "The continent of {e} is {v}.",
                "The continent on which {e} lies is {v}.",
                "{v} is the continent where {e} is found.",
            ),
            (
                "What is the continent of {e}?",
                "On which continent does {e} lie?",
                "On what continent is {e} found?",
            ),
        ),
        Attribute(
            "main city",
            "name",
            (
                "The main city on {e} is {v}.",
                "The main city through which {e} flows is {v}.",
                "{v} is the main city on the banks of {e}.",
            ),
            (
                "What is the main city on {e}?",
                "Which main city lies on {e}?",
                "Name the main city on the banks of {e}.",
            ),
        ),
    ),
    "mountain": (
        Attribute(
            "height",
            "number",
            (
                "The height of {e} is {v} metres.",
                "The height to which {e} rises is {v} metres.",
                "{e} rises to a height of {v} metres.",
            ),
            (
                "What is the height of {e} in metres?",
                "Which height does {e} have in metres?",
                "To what height in metres does {e} rise?",
            ),
        ),
        Attribute(
            "country",
            "name",
            (
                "The country of {e} is {v}.",
                "The country in which {e} stands is {v}.",
                "{v} is the country in which {e} rises.",
            ),
            (
                "What is the country of {e}?",
                "In which country does {e} stand?",
                "In what country does {e} rise?",
            ),
        ),
    ),
    "inventor": (
        Attribute(
            "invention",
            "word",
            (
                "The invention of {e} is the {v}.",
                "The invention for which {e} is known is the {v}.",
                "The {v} is an invention by {e}.",
            ),
            (
                "What is the invention of {e}?",
                "For which invention is {e} known?",
                "Name the invention by {e}.",
            ),
        ),
        Attribute(
            "birth year",
            "year",
            (
                "The birth year of {e} is {v}.",
                "The birth year recorded for {e} is {v}.",
                "The birth of {e} was in {v}.",
            ),
            (
                "What is the birth year of {e}?",
                "In what year was {e} born?",
                "Which year was that of the birth of {e}?",
            ),
        ),
        Attribute(
            "country",
            "name",
            (
                "The country of {e} is {v}.",
                "The country from which {e} came is {v}.",
                "{v} is the country where {e} grew up.",
            ),
            (
                "What is the country of {e}?",
                "From which country did {e} come?",
                "In what country did {e} grow up?",
            ),
        ),
    ),
    "mission": (
        Attribute(
            "launch year",
            "year",
            (
                "The launch year of {e} is {v}.",
                "The launch year recorded for {e} is {v}.",
                "The launch of {e} was in {v}.",
            ),
            (
                "What is the launch year of {e}?",
                "In what year was {e} launched?",
                "Which year was that of the launch of {e}?",
            ),
        ),
        Attribute(
            "target",
            "name",
            (
                "The target of {e} is {v}.",
                "The target chosen for {e} was {v}.",
                "{v} was the target that {e} was sent to.",
            ),
            (
                "What is the target of {e}?",
                "Which target did {e} have?",
                "To which target was {e} sent?",
            ),
        ),
        Attribute(
            "operator",
            "name",
            (
                "The operator of {e} is {v}.",
                "The operator responsible for {e} was {v}.",
                "{v} was the operator that flew {e}.",
            ),
            (
                "Who is the operator of {e}?",
                "Which operator did {e} have?",
                "Name the operator that flew {e}.",
            ),
        ),
    ),
}

ENTITIES: dict[str, str] = {
    "element": """
Hydrogen|H|1|nonmetals
Helium|He|2|noble gases
Lithium|Li|3|alkali metals
Beryllium|Be|4|alkaline earths
Boron|B|5|metalloids
Carbon|C|6|nonmetals
Nitrogen|N|7|nonmetals
Oxygen|O|8|nonmetals
Fluorine|F|9|halogens
Neon|Ne|10|noble gases
Sodium|Na|11|alkali metals
Magnesium|Mg|12|alkaline earths
Aluminium|Al|13|poor metals
Silicon|Si|14|metalloids
Phosphorus|P|15|nonmetals
Sulfur|S|16|nonmetals
Chlorine|Cl|17|halogens
Argon|Ar|18|noble gases
Potassium|K|19|alkali metals
Calcium|Ca|20|alkaline earths
Scandium|Sc|21|transition metals
Titanium|Ti|22|transition metals
Vanadium|V|23|transition metals
Chromium|Cr|24|transition metals
Manganese|Mn|25|transition metals
Iron|Fe|26|transition metals
Cobalt|Co|27|transition metals
Nickel|Ni|28|transition metals
Copper|Cu|29|transition metals
Zinc|Zn|30|transition metals
Gallium|Ga|31|poor metals
Germanium|Ge|32|metalloids
Arsenic|As|33|metalloids
Selenium|Se|34|nonmetals
Bromine|Br|35|halogens
Krypton|Kr|36|noble gases
Rubidium|Rb|37|alkali metals
Strontium|Sr|38|alkaline earths
Yttrium|Y|39|transition metals
Zirconium|Zr|40|transition metals
Niobium|Nb|41|transition metals
Molybdenum|Mo|42|transition metals
Technetium|Tc|43|transition metals
Ruthenium|Ru|44|transition metals
Rhodium|Rh|45|transition metals
Palladium|Pd|46|transition metals
Silver|Ag|47|transition metals
Cadmium|Cd|48|transition metals
Indium|In|49|poor metals
Tin|Sn|50|poor metals
Antimony|Sb|51|metalloids
Tellurium|Te|52|metalloids
Iodine|I|53|halogens
Xenon|Xe|54|noble gases
Caesium|Cs|55|alkali metals
Barium|Ba|56|alkaline earths
Lanthanum|La|57|lanthanides
Cerium|Ce|58|lanthanides
Praseodymium|Pr|59|lanthanides
Neodymium|Nd|60|lanthanides
Promethium|Pm|61|lanthanides
Samarium|Sm|62|lanthanides
Europium|Eu|63|lanthanides
Gadolinium|Gd|64|lanthanides
Terbium|Tb|65|lanthanides
Dysprosium|Dy|66|lanthanides
Holmium|Ho|67|lanthanides
Erbium|Er|68|lanthanides
Thulium|Tm|69|lanthanides
Ytterbium|Yb|70|lanthanides
Lutetium|Lu|71|lanthanides
Hafnium|Hf|72|transition metals
Tantalum|Ta|73|transition metals
Tungsten|W|74|transition metals
Rhenium|Re|75|transition metals
Osmium|Os|76|transition metals
Iridium|Ir|77|transition metals
Platinum|Pt|78|transition metals
Gold|Au|79|transition metals
Thallium|Tl|81|poor metals
Lead|Pb|82|poor metals
Bismuth|Bi|83|poor metals
Polonium|Po|84|-
Astatine|At|85|halogens
Radon|Rn|86|noble gases
Francium|Fr|87|alkali metals
Radium|Ra|88|alkaline earths
Actinium|Ac|89|actinides
Thorium|Th|90|actinides
Protactinium|Pa|91|actinides
Uranium|U|92|actinides
Neptunium|Np|93|actinides
Plutonium|Pu|94|actinides
Americium|Am|95|actinides
Curium|Cm|96|actinides
Berkelium|Bk|97|actinides
Californium|Cf|98|actinides
Einsteinium|Es|99|actinides
Fermium|Fm|100|actinides
Mendelevium|Md|101|actinides
Nobelium|No|102|actinides
Lawrencium|Lr|103|actinides
Rutherfordium|Rf|104|transition metals
Dubnium|Db|105|transition metals
Seaborgium|Sg|106|transition metals
Bohrium|Bh|107|transition metals
Hassium|Hs|108|transition metals
""",
    "country": """
France|Paris|euro|French|Europe
Germany|Berlin|euro|German|Europe
Italy|Rome|euro|Italian|Europe
Spain|Madrid|euro|Spanish|Europe
Portugal|Lisbon|euro|Portuguese|Europe
Greece|Athens|euro|Greek|Europe
Austria|Vienna|euro|German|Europe
Finland|Helsinki|euro|Finnish|Europe
Estonia|Tallinn|euro|Estonian|Europe
Latvia|Riga|euro|Latvian|Europe
Lithuania|Vilnius|euro|Lithuanian|Europe
Slovakia|Bratislava|euro|Slovak|Europe
Slovenia|Ljubljana|euro|Slovene|Europe
Croatia|Zagreb|euro|Croatian|Europe
Ireland|Dublin|euro|English|Europe
Poland|Warsaw|zloty|Polish|Europe
Hungary|Budapest|forint|Hungarian|Europe
Czechia|Prague|koruna|Czech|Europe
Romania|Bucharest|leu|Romanian|Europe
Denmark|Copenhagen|krone|Danish|Europe
Norway|Oslo|krone|Norwegian|Europe
Sweden|Stockholm|krona|Swedish|Europe
Iceland|Reykjavik|krona|Icelandic|Europe
Ukraine|Kyiv|hryvnia|Ukrainian|Europe
Albania|Tirana|lek|Albanian|Europe
Serbia|Belgrade|dinar|Serbian|Europe
Turkey|Ankara|lira|Turkish|-
Japan|Tokyo|yen|Japanese|Asia
China|Beijing|yuan|Mandarin|Asia
Mongolia|Ulaanbaatar|tugrik|Mongolian|Asia
Vietnam|Hanoi|dong|Vietnamese|Asia
Thailand|Bangkok|baht|Thai|Asia
Cambodia|Phnom Penh|riel|Khmer|Asia
Laos|Vientiane|kip|Lao|Asia
Indonesia|-|rupiah|Indonesian|Asia
Nepal|Kathmandu|rupee|Nepali|Asia
Bangladesh|Dhaka|taka|Bengali|Asia
Iran|Tehran|rial|Persian|Asia
Iraq|Baghdad|dinar|Arabic|Asia
Jordan|Amman|dinar|Arabic|Asia
Israel|-|shekel|Hebrew|Asia
Georgia|Tbilisi|lari|Georgian|-
Armenia|Yerevan|dram|Armenian|-
Kazakhstan|Astana|tenge|Kazakh|-
Uzbekistan|Tashkent|som|Uzbek|Asia
Egypt|Cairo|pound|Arabic|Africa
Morocco|Rabat|dirham|Arabic|Africa
Tunisia|Tunis|dinar|Arabic|Africa
Algeria|Algiers|dinar|Arabic|Africa
Ethiopia|Addis Ababa|birr|Amharic|Africa
Kenya|Nairobi|shilling|Swahili|Africa
Ghana|Accra|cedi|English|Africa
Nigeria|Abuja|naira|English|Africa
Angola|Luanda|kwanza|Portuguese|Africa
Zambia|Lusaka|kwacha|English|Africa
Botswana|Gaborone|pula|-|Africa
Madagascar|Antananarivo|ariary|Malagasy|Africa
Mexico|Mexico City|peso|Spanish|North America
Guatemala|Guatemala City|quetzal|Spanish|North America
Honduras|Tegucigalpa|lempira|Spanish|North America
Cuba|Havana|peso|Spanish|North America
Jamaica|Kingston|dollar|English|North America
Haiti|Port-au-Prince|gourde|-|North America
Brazil|Brasilia|real|Portuguese|South America
Argentina|Buenos Aires|peso|Spanish|South America
Chile|Santiago|peso|Spanish|South America
Peru|Lima|sol|Spanish|South America
Colombia|Bogota|peso|Spanish|South America
Ecuador|Quito|dollar|Spanish|South America
Uruguay|Montevideo|peso|Spanish|South America
Paraguay|Asuncion|guarani|-|South America
Canada|Ottawa|dollar|English|North America
Australia|Canberra|dollar|English|Oceania
Fiji|Suva|dollar|-|Oceania
Samoa|Apia|tala|Samoan|Oceania
""",
    "moon": """
Phobos|Mars|Asaph Hall|1877
Deimos|Mars|Asaph Hall|1877
Io|Jupiter|Galileo Galilei|1610
Europa|Jupiter|Galileo Galilei|1610
Ganymede|Jupiter|Galileo Galilei|1610
Callisto|Jupiter|Galileo Galilei|1610
Amalthea|Jupiter|Edward Barnard|1892
Himalia|Jupiter|Charles Perrine|1904
Elara|Jupiter|Charles Perrine|1905
Titan|Saturn|Christiaan Huygens|1655
Rhea|Saturn|Giovanni Cassini|1672
Iapetus|Saturn|Giovanni Cassini|1671
Dione|Saturn|Giovanni Cassini|1684
Tethys|Saturn|Giovanni Cassini|1684
Mimas|Saturn|William Herschel|1789
Enceladus|Saturn|William Herschel|1789
Phoebe|Saturn|William Pickering|1899
Titania|Uranus|William Herschel|1787
Oberon|Uranus|William Herschel|1787
Ariel|Uranus|William Lassell|1851
Umbriel|Uranus|William Lassell|1851
Miranda|Uranus|Gerard Kuiper|1948
Triton|Neptune|William Lassell|1846
Nereid|Neptune|Gerard Kuiper|1949
""",
    "river": """
Danube|Black Sea|Europe|Vienna
Rhine|North Sea|Europe|Cologne
Elbe|North Sea|Europe|Hamburg
Seine|English Channel|Europe|Paris
Loire|Atlantic|Europe|Nantes
Rhone|Mediterranean|Europe|Lyon
Po|Adriatic|Europe|Turin
Tiber|Tyrrhenian Sea|Europe|Rome
Ebro|Mediterranean|Europe|Zaragoza
Tagus|Atlantic|Europe|Lisbon
Thames|North Sea|Europe|London
Vistula|Baltic Sea|Europe|Warsaw
Oder|Baltic Sea|Europe|-
Dnieper|Black Sea|Europe|Kyiv
Volga|Caspian Sea|Europe|-
Nile|Mediterranean|Africa|Cairo
Congo|Atlantic|Africa|Kinshasa
Niger|Atlantic|Africa|-
Zambezi|Indian Ocean|Africa|-
Ganges|Bay of Bengal|Asia|-
Indus|Arabian Sea|Asia|-
Mekong|South China Sea|Asia|-
Yangtze|East China Sea|Asia|-
Irrawaddy|Andaman Sea|Asia|-
Tigris|Persian Gulf|Asia|Baghdad
Amazon|Atlantic|South America|Manaus
Orinoco|Atlantic|South America|-
Mississippi|Gulf of Mexico|North America|-
Yukon|Bering Sea|North America|-
Murray|Southern Ocean|Oceania|-
""",
    "mountain": """
Mont Blanc|4808|-
Matterhorn|4478|-
Grossglockner|3798|Austria
Zugspitze|2962|Germany
Etna|-|Italy
Olympus|2918|Greece
Ararat|5137|Turkey
Elbrus|5642|Russia
Ben Nevis|1345|Scotland
Snowdon|1085|Wales
Triglav|2864|Slovenia
Teide|3718|Spain
Kilimanjaro|5895|Tanzania
Ras Dashen|-|Ethiopia
Toubkal|4167|Morocco
Fuji|3776|Japan
Kinabalu|4095|Malaysia
Damavand|5609|Iran
Annapurna|8091|Nepal
Dhaulagiri|8167|Nepal
Manaslu|8163|Nepal
Nanga Parbat|8126|Pakistan
Denali|6190|United States
Logan|5959|Canada
Aconcagua|6961|Argentina
Huascaran|6768|Peru
Chimborazo|6263|Ecuador
Cotopaxi|5897|Ecuador
Kosciuszko|2228|Australia
Aoraki|3724|New Zealand
""",
    "inventor": """
Alfred Nobel|dynamite|1833|Sweden
Rudolf Diesel|diesel engine|1858|Germany
Karl Benz|petrol car|1844|Germany
Johannes Gutenberg|printing press|-|Germany
Konrad Zuse|Z3 computer|1910|Germany
Louis Braille|braille script|1809|France
Louis Daguerre|daguerreotype|1787|France
Blaise Pascal|mechanical calculator|1623|France
Rene Laennec|stethoscope|1781|France
Alessandro Volta|battery|1745|Italy
Evangelista Torricelli|barometer|1608|Italy
Guglielmo Marconi|radio telegraph|1874|Italy
Christiaan Huygens|pendulum clock|1629|Netherlands
Anders Celsius|centigrade scale|1701|Sweden
John Harrison|marine chronometer|1693|England
Edward Jenner|smallpox vaccine|1749|England
Tim Berners-Lee|World Wide Web|1955|England
Frank Whittle|turbojet|1907|England
Henry Bessemer|steel converter|1813|England
Michael Faraday|electric generator|1791|England
John Napier|logarithms|1550|Scotland
John Baird|mechanical television|1888|Scotland
Kirkpatrick Macmillan|pedal bicycle|1812|Scotland
Samuel Morse|Morse code|1791|United States
Eli Whitney|cotton gin|1765|United States
Thomas Edison|phonograph|1847|United States
Elisha Otis|safety elevator|1811|United States
Robert Goddard|liquid fuel rocket|1882|United States
Philo Farnsworth|electronic television|1906|United States
George Eastman|film camera|1854|United States
Benjamin Franklin|lightning rod|1706|United States
Laszlo Biro|ballpoint pen|1899|Hungary
Erno Rubik|Rubik cube|1944|Hungary
Igor Sikorsky|-|1889|-
Momofuku Ando|instant noodles|1910|-
Cai Lun|paper|-|China
""",
    "mission": """
Sputnik 1|1957|Earth orbit|Soviet Union
Luna 2|1959|Moon|Soviet Union
Luna 9|1966|Moon|Soviet Union
Vostok 1|1961|Earth orbit|Soviet Union
Venera 7|1970|Venus|Soviet Union
Mariner 2|1962|Venus|NASA
Mariner 4|1964|Mars|NASA
Mariner 10|1973|Mercury|NASA
Gemini 4|1965|Earth orbit|NASA
Apollo 8|1968|Moon|NASA
Apollo 11|1969|Moon|NASA
Apollo 13|1970|Moon|NASA
Apollo 17|1972|Moon|NASA
Skylab|1973|Earth orbit|NASA
Viking 1|1975|Mars|NASA
Voyager 1|1977|-|NASA
Voyager 2|1977|-|NASA
Magellan|1989|Venus|NASA
Galileo|1989|Jupiter|NASA
Pathfinder|1996|Mars|NASA
New Horizons|2006|Pluto|NASA
Kepler|2009|-|NASA
Juno|2011|Jupiter|NASA
Curiosity|2011|Mars|NASA
Perseverance|2020|Mars|NASA
Messenger|2004|Mercury|NASA
Giotto|1985|Halley's comet|ESA
Rosetta|2004|-|ESA
Mars Express|2003|Mars|ESA
Venus Express|2005|Venus|ESA
Hayabusa|2003|Itokawa|-
Chandrayaan 1|2008|Moon|ISRO
""",
}


@dataclass(frozen=True)
class Fact:
    """The value of an entity's attribute."""

    entity: str
    kind: str
    attribute: Attribute
    value: str


def facts() -> list[list[Fact]]:
    """All that is known, entity by entity."""
    found: list[list[Fact]] = []
    for kind, table in ENTITIES.items():
        for line in table.strip().splitlines():
            entity, *values = line.split("|")
            pairs = zip(KINDS[kind], values, strict=True)
            known = [Fact(entity, kind, attribute, v) for attribute, v in pairs if v != "-"]
            found.append(known)
    return found
