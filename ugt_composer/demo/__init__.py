"""The demo data: a simulated shop whose customers follow an exactly known probability law."""
